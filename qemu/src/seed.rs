//! The NoCloud volume: a small vfat disk labelled `cidata` that tells the machine who it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::image::Project;

/// What the volume holds.
#[derive(Debug, Clone, Default)]
pub struct Seed {
    /// The cloud-config, word for word.
    pub user_data: Vec<u8>,
    /// Public keys for `core`, which travel in the meta-data so that the user-data stays as its author wrote it.
    pub keys: Vec<String>,
    /// More files of the volume: name and where it comes from.
    pub files: Vec<(String, PathBuf)>,
}

impl Seed {
    /// Writes the volume to `path`, by way of files beside it.
    ///
    /// # Errors
    /// A file cannot be read or written, or mkfs.vfat or mcopy fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        let aside = path.with_extension("d");
        std::fs::create_dir_all(&aside).with_context(|| format!("make {}", aside.display()))?;
        let mut files = Vec::new();
        for (name, contents) in [
            ("user-data", self.user_data.clone()),
            ("meta-data", self.meta_data().into_bytes()),
        ] {
            let file = aside.join(name);
            std::fs::write(&file, contents).with_context(|| format!("write {}", file.display()))?;
            files.push((name.to_owned(), file));
        }
        files.extend(self.files.iter().cloned());

        let mut size_bytes = 0;
        for (_, file) in &files {
            size_bytes += std::fs::metadata(file)
                .with_context(|| format!("look at {}", file.display()))?
                .len();
        }
        // Room for the tables and for the clusters' ends; FAT wants some tens of kilobytes at least.
        let size_bytes = (size_bytes + size_bytes / 8 + (1 << 20)).next_multiple_of(1 << 20);
        File::create(path)
            .and_then(|file| file.set_len(size_bytes))
            .with_context(|| format!("make {}", path.display()))?;
        run(Command::new("/sbin/mkfs.vfat")
            .args(["-n", "cidata", "--invariant"])
            .arg(path))?;
        for (name, file) in &files {
            run(Command::new("mcopy")
                .arg("-i")
                .arg(path)
                .arg(file)
                .arg(format!("::{name}")))?;
        }
        Ok(())
    }

    fn meta_data(&self) -> String {
        let mut text = "instance-id: orlop\n".to_owned();
        if !self.keys.is_empty() {
            text.push_str("public-keys:\n");
            for key in &self.keys {
                text.push_str(&format!("  - {key}\n"));
            }
        }
        text
    }
}

/// The sample web server's archive for `docker load`, made from Debian's busybox where it is not there yet.
///
/// # Errors
/// There is no static busybox, or the archive cannot be written.
pub fn web_archive(project: &Project) -> Result<PathBuf> {
    let busybox = [Path::new("/bin/busybox"), Path::new("/usr/bin/busybox")]
        .into_iter()
        .find(|path| path.exists())
        .context("there is no busybox: install the package busybox-static")?;
    let bytes = std::fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    let path = project.path("build/web.tar");
    // Several tests may want it at once; each writes its own and the last rename wins, with the same bytes.
    let aside = project.path(&format!(
        "build/web.tar.{}.{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(project.path("build")).context("make build/")?;
    orlop_image::sample::web_server(bytes)
        .and_then(|recipe| recipe.write_docker_archive(&aside))
        .context("make the sample image")?;
    std::fs::rename(&aside, &path).with_context(|| format!("rename to {}", path.display()))?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_travel_in_the_meta_data() {
        let seed = Seed {
            keys: vec!["ssh-ed25519 AAAA one".to_owned()],
            ..Seed::default()
        };
        assert_eq!(
            seed.meta_data(),
            "instance-id: orlop\npublic-keys:\n  - ssh-ed25519 AAAA one\n"
        );
    }
}
