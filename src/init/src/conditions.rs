//! What `Condition…=` and `Assert…=` ask about this machine (systemd.unit(5)).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use orlop_unit::Test;
use orlop_unit::install::fits_pattern;

/// Whether the bare test holds; what cannot be found out does not.
#[must_use]
pub fn holds(test: Test, parameter: &str) -> bool {
    let path = Path::new(parameter);
    match test {
        Test::PathExists => path.exists(),
        Test::PathExistsGlob => matches_glob(parameter),
        Test::PathIsDirectory => path.is_dir(),
        Test::PathIsSymbolicLink => path.is_symlink(),
        Test::PathIsMountPoint => is_mount_point(parameter),
        Test::PathIsReadWrite => nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok(),
        Test::DirectoryNotEmpty => fs::read_dir(path).is_ok_and(|mut d| d.next().is_some()),
        Test::FileNotEmpty => fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > 0),
        Test::FileIsExecutable => {
            fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        }
        Test::KernelCommandLine => fs::read_to_string("/proc/cmdline").is_ok_and(|line| {
            line.split_ascii_whitespace().any(|word| {
                word == parameter
                    || (!parameter.contains('=') && word.split('=').next() == Some(parameter))
            })
        }),
        Test::Host => {
            let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let machine_id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
            fits_pattern(parameter, hostname.trim()) || machine_id.trim() == parameter
        }
        Test::Architecture => parameter == "x86-64",
        Test::Virtualization => virtualization(parameter),
        Test::FirstBoot => {
            orlop_unit::value::parse_bool(parameter)
                == Some(Path::new("/run/orlop/first-boot").exists())
        }
        Test::User => {
            orlop_unit::value::parse_bool(parameter).is_none()
                && matches!(parameter, "root" | "0" | "@system")
        }
        Test::Group => matches!(parameter, "root" | "0"),
        Test::Environment => match parameter.split_once('=') {
            Some((name, value)) => std::env::var(name).is_ok_and(|v| v == value),
            None => std::env::var_os(parameter).is_some(),
        },
        Test::ControlGroupController => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|text| {
                parameter
                    .split_ascii_whitespace()
                    .all(|c| c == "v2" || text.split_ascii_whitespace().any(|have| have == c))
            }),
        Test::KernelVersion => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            compare(parameter, release.trim())
        }
        Test::Memory => nix::sys::sysinfo::sysinfo()
            .is_ok_and(|info| compare_number(parameter, info.ram_total())),
        Test::Cpus => {
            let count = std::thread::available_parallelism()
                .map_or(1, |n| u64::try_from(n.get()).unwrap_or(1));
            compare_number(parameter, count)
        }
        _ => false,
    }
}

fn is_mount_point(path: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|text| {
        text.lines()
            .any(|l| l.split(' ').nth(4) == Some(path.trim_end_matches('/')))
    })
}

fn virtualization(parameter: &str) -> bool {
    let hypervisor = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines().any(|l| {
            l.starts_with("flags") && l.split_ascii_whitespace().any(|f| f == "hypervisor")
        })
    });
    match orlop_unit::value::parse_bool(parameter) {
        Some(wanted) => wanted == hypervisor,
        None => parameter == "vm" && hypervisor,
    }
}

/// Whether there is a path that matches the pattern, as glob(3) has it: a name that begins with a dot only if the pattern says so.
pub fn matches_glob(pattern: &str) -> bool {
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let start = if pattern.starts_with('/') { "/" } else { "." };
    matches_below(Path::new(start), &parts)
}

fn matches_below(directory: &Path, parts: &[&str]) -> bool {
    let Some((part, rest)) = parts.split_first() else {
        return true;
    };
    if !part.contains(['*', '?', '[']) {
        let path = directory.join(part);
        return fs::symlink_metadata(&path).is_ok() && matches_below(&path, rest);
    }
    fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let fits = entry.file_name().to_str().is_some_and(|name| {
                part.starts_with('.') == name.starts_with('.') && fits_pattern(part, name)
            });
            fits && matches_below(&entry.path(), rest)
        })
    })
}

fn split_operator(parameter: &str) -> (&str, &str) {
    for operator in ["<=", ">=", "!=", "==", "<", ">", "="] {
        if let Some(rest) = parameter.strip_prefix(operator) {
            return (operator, rest.trim());
        }
    }
    ("", parameter)
}

fn verdict(operator: &str, order: std::cmp::Ordering) -> bool {
    match operator {
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        "=" | "==" => order.is_eq(),
        "!=" => order.is_ne(),
        ">" => order.is_gt(),
        _ => order.is_ge(),
    }
}

fn compare_number(parameter: &str, have: u64) -> bool {
    let (operator, number) = split_operator(parameter);
    orlop_unit::value::parse_bytes(number)
        .is_some_and(|wanted| verdict(operator, have.cmp(&wanted)))
}

fn compare(parameter: &str, have: &str) -> bool {
    let (operator, wanted) = split_operator(parameter);
    if operator.is_empty() {
        return fits_pattern(wanted, have);
    }
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect()
    };
    let wanted = numbers(wanted);
    let have = numbers(have);
    verdict(operator, have.iter().take(wanted.len()).cmp(wanted.iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_sizes_compare_as_numbers() {
        assert!(compare(">=4.0", "6.1.0-56-cloud-amd64"));
        assert!(compare("<6.10", "6.9.2"));
        assert!(!compare(">6.1.0", "6.1.0-56"));
        assert!(compare("6.*", "6.1.0"));
        assert!(compare_number(">=1M", 1 << 20));
        assert!(!compare_number("2G", 1 << 30));
    }

    #[test]
    fn a_pattern_may_have_wildcards_in_each_of_its_names() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        fs::create_dir_all(directory.path().join("a/b1")).unwrap();
        fs::write(directory.path().join("a/b1/.hidden"), "").unwrap();
        for (pattern, found) in [
            ("a", true),
            ("?/b[0-9]", true),
            ("*/b1/x", false),
            ("a/*/*", false),
            ("a/*/.h*", true),
            ("*/*/", true),
        ] {
            assert_eq!(
                matches_glob(&format!("{root}/{pattern}")),
                found,
                "{pattern}"
            );
        }
    }
}
