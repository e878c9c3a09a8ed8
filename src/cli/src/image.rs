//! `docker load`, `docker images`, `docker rmi` and `docker image …`: the image store on the command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Parser;
use orlop_container::Records;
use orlop_image::{ImageId, Listed, Removed, Store};

/// Where the store lies, unless `ORLOP_IMAGES` says otherwise.
const STORE: &str = "/var/lib/orlop/images";

/// What `docker image` and the functions here understand: word, summary, function.
type Word = (&'static str, &'static str, fn(&[OsString]) -> ExitCode);

const WORDS: &[Word] = &[
    ("load", "load images from an archive or layout", load),
    ("ls", "list images", images),
    ("list", "list images", images),
    ("rm", "remove images", rmi),
    ("tag", "give an image one more name", tag),
    ("inspect", "show an image's configuration", inspect),
    ("prune", "remove what no image needs", prune),
];

/// Load images from a `docker save` archive or an OCI layout.
#[derive(Parser)]
#[command(name = "docker load", no_binary_name = true)]
struct LoadArguments {
    /// The archive or directory; standard input if it is not given.
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print nothing.
    #[arg(short, long)]
    quiet: bool,
}

/// List images.
#[derive(Parser)]
#[command(name = "docker images", no_binary_name = true)]
struct ImagesArguments {
    /// Only images of this repository, or this one name.
    repository: Option<String>,
    /// Show all images (they always are).
    #[arg(short, long)]
    all: bool,
    /// Print ids only.
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full.
    #[arg(long)]
    no_trunc: bool,
    /// Print JSON, one object a line; the only format known is `json`.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Remove images.
#[derive(Parser)]
#[command(name = "docker rmi", no_binary_name = true)]
struct RmiArguments {
    /// Names or ids.
    #[arg(required = true)]
    images: Vec<String>,
    /// Remove an image by its id although it has several names.
    #[arg(short, long)]
    force: bool,
}

/// Give an image one more name.
#[derive(Parser)]
#[command(name = "docker tag", no_binary_name = true)]
struct TagArguments {
    /// The image's name or id.
    image: String,
    /// The new name.
    name: String,
}

/// Show images' configuration as JSON.
#[derive(Parser)]
#[command(name = "docker image inspect", no_binary_name = true)]
struct InspectArguments {
    /// Names or ids.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Remove layers and configurations that no image needs.
#[derive(Parser)]
#[command(name = "docker image prune", no_binary_name = true)]
struct PruneArguments {
    /// Taken and ignored: images with names are never removed here.
    #[arg(short, long)]
    force: bool,
}

/// `docker image WORD …`.
pub fn image(arguments: &[OsString]) -> ExitCode {
    let word = arguments
        .first()
        .and_then(|word| word.to_str())
        .unwrap_or("--help");
    if let Some((_, _, run)) = WORDS.iter().find(|(name, ..)| *name == word) {
        return run(arguments.get(1..).unwrap_or_default());
    }
    let is_help = matches!(word, "--help" | "-h" | "help");
    let mut text = String::from("Usage: docker image COMMAND [ARGUMENT…]\n\nCommands:\n");
    for (name, summary, _) in WORDS {
        text.push_str(&format!("  {name:<8} {summary}\n"));
    }
    if is_help {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    eprintln!("docker image: no command {word:?}\n\n{text}");
    ExitCode::from(2)
}

/// `docker load [-i FILE]`.
pub fn load(arguments: &[OsString]) -> ExitCode {
    run("docker load", arguments, |arguments: LoadArguments| {
        let input = arguments
            .input
            .unwrap_or_else(|| PathBuf::from("/dev/stdin"));
        for imported in store()?.import(&input)? {
            if arguments.quiet {
                continue;
            }
            if imported.names.is_empty() {
                println!("Loaded image ID: {}", imported.id);
            }
            for name in imported.names {
                println!("Loaded image: {name}");
            }
        }
        Ok(())
    })
}

/// `docker images [REPOSITORY]`.
pub fn images(arguments: &[OsString]) -> ExitCode {
    run("docker images", arguments, |arguments: ImagesArguments| {
        let wanted = arguments.repository.as_deref();
        let mut rows = Vec::new();
        for image in store()?.list()? {
            rows.extend(
                rows_of(&image, arguments.no_trunc)
                    .into_iter()
                    .filter(|row| row.is_wanted(wanted)),
            );
        }
        match arguments.format.as_deref() {
            _ if arguments.quiet => {
                rows.dedup_by(|a, b| a.id == b.id);
                rows.iter().for_each(|row| println!("{}", row.id));
            }
            Some("json") => rows.iter().for_each(|row| println!("{}", row.to_json())),
            Some(other) => bail!("the format {other:?} is not known, only json"),
            None => print!("{}", table(&rows)),
        }
        Ok(())
    })
}

/// `docker rmi IMAGE…`. All are tried; one that fails makes the whole fail.
pub fn rmi(arguments: &[OsString]) -> ExitCode {
    run("docker rmi", arguments, |arguments: RmiArguments| {
        let store = store()?;
        let running = running(&store)?;
        let mut failed = 0;
        for image in &arguments.images {
            match remove(&store, image, arguments.force, &running) {
                Ok(removed) => {
                    for name in removed.untagged {
                        println!("Untagged: {name}");
                    }
                    if let Some(id) = removed.deleted {
                        println!("Deleted: {id}");
                    }
                }
                Err(err) => {
                    eprintln!("docker rmi: {err:#}");
                    failed += 1;
                }
            }
        }
        if failed > 0 {
            bail!("{failed} of {} not removed", arguments.images.len());
        }
        Ok(())
    })
}

/// Removes an image unless a container runs from it; no force makes up for files that vanish under a program.
fn remove(
    store: &Store,
    image: &str,
    force: bool,
    running: &[(ImageId, String)],
) -> anyhow::Result<Removed> {
    // Removing one name of several takes no layer away. A damaged image cannot be looked into, but can be removed.
    if let Ok(found) = store.resolve(image)
        && let Some((_, container)) = running.iter().find(|(id, _)| *id == found.id)
        && (found.names.len() < 2 || force)
    {
        bail!("container {container} runs from image {image}: stop it first");
    }
    Ok(store.remove(image, force)?)
}

/// The running containers' names with the images that they were started from.
fn running(store: &Store) -> anyhow::Result<Vec<(ImageId, String)>> {
    let records = Records::new(Records::DIRECTORY).all()?;
    Ok(records
        .into_iter()
        .filter(|record| record.running().is_some())
        .filter_map(|record| Some((store.resolve(&record.image).ok()?.id, record.name)))
        .collect())
}

/// `docker tag IMAGE NAME`.
pub fn tag(arguments: &[OsString]) -> ExitCode {
    run("docker tag", arguments, |arguments: TagArguments| {
        Ok(store()?.tag(&arguments.image, &arguments.name)?)
    })
}

/// `docker image inspect IMAGE…`.
pub fn inspect(arguments: &[OsString]) -> ExitCode {
    run(
        "docker image inspect",
        arguments,
        |arguments: InspectArguments| {
            let store = store()?;
            let mut shown = Vec::new();
            for name in &arguments.images {
                let image = store.resolve(name)?;
                shown.push(serde_json::json!({
                    "Id": image.id.to_string(),
                    "RepoTags": image.names,
                    "Created": image.config.created(),
                    "Architecture": image.config.architecture(),
                    "Os": image.config.os(),
                    "Config": image.config.config(),
                    "RootFS": { "Type": "layers", "Layers": image.config.rootfs().diff_ids() },
                    "GraphDriver": { "Name": "overlay", "Data": { "LowerDirs": image.layers } },
                }));
            }
            println!(
                "{}",
                serde_json::to_string_pretty(&shown).context("cannot print the configuration")?
            );
            Ok(())
        },
    )
}

/// `docker image prune`.
pub fn prune(arguments: &[OsString]) -> ExitCode {
    run("docker image prune", arguments, |_: PruneArguments| {
        let collected = store()?.collect()?;
        println!(
            "Removed {} layers and {} configurations",
            collected.layers, collected.configurations
        );
        Ok(())
    })
}

fn store() -> anyhow::Result<Store> {
    let root = std::env::var_os("ORLOP_IMAGES").unwrap_or_else(|| STORE.into());
    Ok(Store::open(Path::new(&root))?)
}

/// Parses, runs, and prints the error chain in one line.
fn run<A: Parser>(
    name: &str,
    arguments: &[OsString],
    command: impl FnOnce(A) -> anyhow::Result<()>,
) -> ExitCode {
    let arguments = match A::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(err) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    match command(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{name}: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// A line of `docker images`.
struct Row {
    repository: String,
    tag: String,
    id: String,
    created: String,
    size: String,
}

impl Row {
    fn is_wanted(&self, wanted: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| {
            wanted == self.repository || wanted == format!("{}:{}", self.repository, self.tag)
        })
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "Repository": self.repository,
            "Tag": self.tag,
            "ID": self.id,
            "CreatedSince": self.created,
            "Size": self.size,
        })
    }
}

fn rows_of(image: &Listed, in_full: bool) -> Vec<Row> {
    let row = |repository: String, tag: &str| Row {
        repository,
        tag: tag.to_owned(),
        id: if in_full {
            image.id.to_string()
        } else {
            image.id.short().to_owned()
        },
        created: age(image.imported_s),
        size: size(image.size_bytes),
    };
    if image.names.is_empty() {
        return vec![row("<none>".to_owned(), "<none>")];
    }
    image
        .names
        .iter()
        .map(|name| row(name.familiar_repository(), name.tag().unwrap_or("<none>")))
        .collect()
}

fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        [
            row.repository.clone(),
            row.tag.clone(),
            row.id.clone(),
            row.created.clone(),
            row.size.clone(),
        ]
    };
    let mut lines = vec![["REPOSITORY", "TAG", "IMAGE ID", "LOADED", "SIZE"].map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths = [0; 5];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(padded.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in the largest unit that fits.
fn age(since_s: u64) -> String {
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let seconds = now_s.saturating_sub(since_s);
    let units = [
        (86_400 * 7, "week"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let (length, unit) = units
        .into_iter()
        .find(|(length, _)| seconds >= *length)
        .unwrap_or((1, "second"));
    let count = seconds / length;
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Bytes in decimal units, three digits, as Docker prints them.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_as_docker_prints_them() {
        assert_eq!(
            [0, 999, 1000, 12_345, 999_900, 2_000_000_000].map(size),
            ["0B", "999B", "1.00kB", "12.3kB", "1.00MB", "2.00GB"]
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = Row {
            repository: "a-long-name".into(),
            tag: "1".into(),
            id: "i".into(),
            created: "c".into(),
            size: "s".into(),
        };
        let text = table(&[row]);
        assert_eq!(
            text.lines().next().unwrap().find("TAG"),
            text.lines().nth(1).unwrap().find("1 ")
        );
    }
}
