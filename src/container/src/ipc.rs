//! `RemoveIPC=`: what a user's processes leave of shared memory, semaphores and queues of messages.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use orlop_sys::ipc::{self, Kind};

/// Where POSIX objects are files (shm_overview(7), mq_overview(7)).
const DIRECTORIES: [&str; 2] = ["/dev/shm", "/dev/mqueue"];
/// Deeper directories are left.
const MOST_DEPTH: u32 = 16;

/// Removes the objects of a user, and of a group other than root's. Nothing happens while a process of the user's runs: it may be another unit's.
///
/// # Errors
/// A list that cannot be read, or an object that cannot be removed.
pub fn remove_ipc(user: u32, group: u32) -> io::Result<()> {
    if has_process(user)? {
        return Ok(());
    }
    for (kind, list) in Kind::ALL {
        let text = match fs::read_to_string(list) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        for id in owned(&text, user, group) {
            ipc::remove(kind, id)?;
        }
    }
    for directory in DIRECTORIES {
        remove_files(Path::new(directory), user, group, MOST_DEPTH)?;
    }
    Ok(())
}

fn has_process(user: u32) -> io::Result<bool> {
    let mut processes = fs::read_dir("/proc")?.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().bytes().all(|b| b.is_ascii_digit())
    });
    Ok(processes.any(|entry| entry.metadata().is_ok_and(|found| found.uid() == user)))
}

/// The numbers of a list's objects that are the user's or the group's; the columns are named in the first line.
fn owned(list: &str, user: u32, group: u32) -> Vec<i32> {
    let mut lines = list.lines().map(|line| line.split_whitespace());
    let Some(names) = lines.next() else {
        return Vec::new();
    };
    let names: Vec<&str> = names.collect();
    let ids = ["shmid", "semid", "msqid"];
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.collect();
            let field = |wanted: &dyn Fn(&str) -> bool| {
                let index = names.iter().position(|name| wanted(name))?;
                fields.get(index)?.parse::<i64>().ok()
            };
            let is = |name: &'static str, number: u32| {
                field(&|n| n == name).is_some_and(|found| found == i64::from(number))
            };
            (is("uid", user) || (group != 0 && is("gid", group)))
                .then(|| i32::try_from(field(&|n| ids.contains(&n))?).ok())?
        })
        .collect()
}

fn remove_files(directory: &Path, user: u32, group: u32, depth: u32) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        let Ok(found) = entry.metadata() else {
            continue;
        };
        let is_owned = found.uid() == user || (group != 0 && found.gid() == group);
        if found.is_dir() {
            if let Some(depth) = depth.checked_sub(1) {
                remove_files(&entry.path(), user, group, depth)?;
            }
            if is_owned {
                // One that still holds another's files stays.
                let _ = fs::remove_dir(entry.path());
            }
        } else if is_owned {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_the_names_of_the_columns() {
        let list = "       key      shmid perms       size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                            0          7  1600         56   100   200      1   990   980     0     0\n\
                            0          8  1600         56   100   200      1    33   980     0     0\n\
                            0          9  1600         56   100   200      1    33    33     0     0\n";
        assert_eq!(owned(list, 990, 12_345), [7]);
        assert_eq!(owned(list, 990, 980), [7, 8]);
        assert_eq!(owned("", 1, 1), [0; 0]);
        assert_eq!(owned("key shmid uid\n1 2\n", 0, 0), [0; 0]);
    }
}
