//! `--volume`, `--mount` and `--tmpfs`.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use orlop_container::{Fill, MountRequest, MountSource};

/// Where named volumes live.
pub(crate) const DIRECTORY: &str = "/var/lib/orlop/volumes";

/// All mounts of the three flags, and which of them are named volumes.
pub(crate) fn parse(
    volumes: &[String],
    mounts: &[String],
    tmpfs: &[String],
) -> Result<(Vec<MountRequest>, Vec<Fill>)> {
    let mut parsed = Vec::new();
    for text in volumes {
        parsed.push(volume(text)?);
    }
    for text in mounts {
        parsed.push(mount(text)?);
    }
    for text in tmpfs {
        let (destination, options) = text.split_once(':').unwrap_or((text, ""));
        let options = options
            .split(',')
            .filter(|o| !o.is_empty())
            .map(str::to_owned)
            .collect();
        parsed.push(request(
            MountSource::Tmpfs(options),
            destination,
            false,
            Vec::new(),
        )?);
    }
    let base = Path::new(DIRECTORY);
    let named = parsed
        .iter()
        .filter_map(|m| match &m.source {
            MountSource::Bind(path) if path.starts_with(base) => Some(Fill {
                volume: path.clone(),
                destination: m.destination.clone(),
            }),
            _ => None,
        })
        .collect();
    Ok((parsed, named))
}

/// Makes the directories that do not exist yet, as Docker does.
pub(crate) fn make_sources(mounts: &[MountRequest]) -> Result<()> {
    for mount in mounts {
        if let MountSource::Bind(path) = &mount.source
            && !path.exists()
        {
            std::fs::create_dir_all(path)
                .with_context(|| format!("make the volume {}", path.display()))?;
        }
    }
    Ok(())
}

fn request(
    source: MountSource,
    destination: &str,
    read_only: bool,
    options: Vec<String>,
) -> Result<MountRequest> {
    if !destination.starts_with('/') {
        bail!("the mount target {destination:?} is no absolute path");
    }
    Ok(MountRequest {
        source,
        destination: destination.into(),
        read_only,
        options,
    })
}

/// A path, or a name of a volume.
fn source(text: &str) -> Result<MountSource> {
    if text.starts_with('/') {
        return Ok(MountSource::Bind(text.into()));
    }
    let mut characters = text.chars();
    let good = characters.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && characters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !good {
        bail!("{text:?} is neither an absolute path nor a name of a volume");
    }
    Ok(MountSource::Bind(Path::new(DIRECTORY).join(text)))
}

/// `SOURCE:TARGET[:OPTIONS]`.
fn volume(text: &str) -> Result<MountRequest> {
    let parts: Vec<&str> = text.split(':').collect();
    let (from, to, options) = match parts.as_slice() {
        [from, to] => (*from, *to, ""),
        [from, to, options] => (*from, *to, *options),
        // The root is fresh for each start, so a nameless volume is a place to write like any other.
        [to] => {
            return request(MountSource::Tmpfs(Vec::new()), to, false, Vec::new())
                .with_context(|| format!("--volume {text:?}"));
        }
        _ => bail!("--volume {text:?} is not SOURCE:TARGET[:OPTIONS]"),
    };
    let mut read_only = false;
    let mut kept = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => read_only = true,
            // No labels here, and copying is decided by whether the volume is empty.
            "rw" | "z" | "Z" | "nocopy" | "U" | "cached" | "delegated" | "consistent" => {}
            "rprivate" | "private" | "rslave" | "slave" | "rshared" | "shared" | "noexec"
            | "nosuid" | "nodev" => {
                kept.push(option.to_owned());
            }
            _ => bail!("--volume {text:?}: unknown option {option:?}"),
        }
    }
    request(source(from)?, to, read_only, kept).with_context(|| format!("--volume {text:?}"))
}

/// `type=bind,source=/a,target=/b,readonly`.
fn mount(text: &str) -> Result<MountRequest> {
    let (mut kind, mut from, mut to, mut read_only) = ("volume", None, None, false);
    let mut options = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "type" => kind = value,
            "source" | "src" => from = Some(value),
            "target" | "destination" | "dst" => to = Some(value),
            "readonly" | "ro" => read_only = value.is_empty() || value == "true" || value == "1",
            "bind-propagation" => options.push(value.to_owned()),
            "tmpfs-size" => options.push(format!("size={value}")),
            "tmpfs-mode" => options.push(format!("mode={value}")),
            "consistency" | "volume-nocopy" => {}
            _ => bail!("--mount {text:?}: unknown key {key:?}"),
        }
    }
    let to = to.ok_or_else(|| anyhow!("--mount {text:?} has no target"))?;
    match (kind, from) {
        ("tmpfs", None) => request(MountSource::Tmpfs(options), to, read_only, Vec::new()),
        ("bind", Some(path)) if path.starts_with('/') => {
            if !Path::new(path).exists() {
                bail!("--mount {text:?}: {path} does not exist");
            }
            request(MountSource::Bind(path.into()), to, read_only, options)
        }
        ("volume", Some(name)) => request(source(name)?, to, read_only, options),
        _ => bail!("--mount {text:?}: type {kind:?} needs another source"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_told_apart() {
        assert_eq!(
            volume("/srv/www:/www:ro,z").unwrap(),
            MountRequest {
                source: MountSource::Bind("/srv/www".into()),
                destination: "/www".into(),
                read_only: true,
                options: Vec::new(),
            }
        );
        let (mounts, named) = parse(&["data:/data".into()], &[], &["/tmp:size=1m".into()]).unwrap();
        assert_eq!(named[0].volume, Path::new("/var/lib/orlop/volumes/data"));
        assert_eq!(mounts[1].source, MountSource::Tmpfs(vec!["size=1m".into()]));
    }

    #[test]
    fn a_name_cannot_climb_out_of_the_volumes() {
        for text in [
            "../etc:/x",
            ".:/x",
            "a/b:/x",
            ":/x",
            "a:b",
            "a:/b:c",
            "a:/b:ro:x",
        ] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_long_form_says_the_same() {
        let long = mount("type=volume,src=data,dst=/data,readonly").unwrap();
        assert_eq!(long, volume("data:/data:ro").unwrap());
        assert!(mount("type=bind,src=/no/such/place,dst=/x").is_err());
    }
}
