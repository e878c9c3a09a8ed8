//! `orlop update`: newer versions, from a file or a server to the slot that does not run; and the making of payloads.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use orlop_boot::entries::Version;
use orlop_boot::esp::{ENTRIES, Esp};
use orlop_boot::trials::{self, Trials};
use orlop_config::Machine;
use orlop_sys::kmsg::{self, Priority};
use orlop_update::apply::{ApplyError, apply, check};
use orlop_update::channel::{self, Latest};
use orlop_update::fetch::{Download, Patience};
use orlop_update::pack::{Compressor, Contents, add_signature, manifest_text, pack};
use orlop_update::payload::Payload;
use orlop_update::signature::{Keyring, SecretKey, read_bounded};
use orlop_update::slots::{Options, Refusal};
use orlop_update::storage::{DeviceDisk, MountedEsp};
use orlop_update::system::{self, KEYS, Lock, RECORD, Record};
use orlop_update::url::Url;

use crate::progress::{Meter, mib};
use crate::{stderr, systemctl};

/// What the machine that runs was compiled to (see `orlop setup`).
const COMPILED: &str = "/run/orlop/machine.json";

/// Bring a newer version to the slot that does not run; make the payloads that carry versions.
#[derive(Parser)]
#[command(name = "orlop update", no_binary_name = true)]
struct Arguments {
    #[command(subcommand)]
    word: Word,
}

#[derive(Subcommand)]
enum Word {
    /// Write a payload to the slot that does not run, to be started next.
    Apply(Apply),
    /// Say whether the channel has a newer version; ends with 0 when it does and with 1 when not.
    Check(Where),
    /// Verify a payload without installing it, and say what it brings.
    Verify(Verify),
    /// Make a payload.
    Pack(Pack),
    /// Make a key without a password: NAME.key and NAME.pub.
    Keygen {
        /// The files' name without an ending.
        name: PathBuf,
    },
    /// Print the text of a payload that is to be signed, with minisign for example.
    Manifest {
        /// The payload.
        file: PathBuf,
    },
    /// Add a signature to a payload.
    Sign(Sign),
    /// Write latest.json for the payloads (*.update) in a directory, and its signature.
    Index(Index),
}

#[derive(Args)]
struct Place {
    /// Another record of what runs than the boot stage's.
    #[arg(long, value_name = "FILE", default_value = RECORD)]
    record: PathBuf,
}

#[derive(Args)]
struct Keys {
    /// Trust the keys (*.pub) of another directory.
    #[arg(long, value_name = "DIRECTORY", default_value = KEYS)]
    keys: PathBuf,
}

#[derive(Args)]
struct Where {
    /// The directory of latest.json, in place of the configuration's update.url.
    #[arg(long)]
    url: Option<String>,
    /// The channel, in place of the configuration's.
    #[arg(long)]
    channel: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    keys: Keys,
}

#[derive(Args)]
struct Apply {
    /// A file or an http:// URL; what the channel offers when it is not given.
    source: Option<String>,
    /// Take an older version too.
    #[arg(long)]
    allow_downgrade: bool,
    /// Take a version that failed on this machine before.
    #[arg(long)]
    retry: bool,
    /// Reboot into it.
    #[arg(long)]
    reboot: bool,
    #[command(flatten)]
    from: Where,
}

#[derive(Args)]
struct Verify {
    /// A file or an http:// URL.
    source: String,
    #[command(flatten)]
    keys: Keys,
}

#[derive(Args)]
struct Pack {
    /// The version.
    #[arg(long)]
    version: Version,
    /// The machines that it is for.
    #[arg(long, default_value_t = system::architecture().to_owned())]
    architecture: String,
    /// The channel.
    #[arg(long, default_value = channel::DEFAULT)]
    channel: String,
    /// The root hash of the hash tree.
    #[arg(long, value_name = "HEX")]
    root_hash: String,
    /// The Unified Kernel Image.
    #[arg(long, value_name = "FILE")]
    uki: PathBuf,
    /// The root filesystem.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Its hash tree.
    #[arg(long, value_name = "FILE")]
    verity: PathBuf,
    /// systemd-boot, so that the payload can be installed.
    #[arg(long, value_name = "FILE")]
    loader: Option<PathBuf>,
    /// The secret key; without one the payload is not signed yet.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Compress with the program zstd at this level, 1 to 19.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=19))]
    zstd: Option<u8>,
    /// The payload.
    output: PathBuf,
}

#[derive(Args)]
struct Sign {
    /// The payload.
    file: PathBuf,
    /// A signature of the payload's manifest, made by minisign.
    #[arg(required_unless_present = "key")]
    signature: Option<PathBuf>,
    /// A secret key without a password to sign with.
    #[arg(long, value_name = "FILE", conflicts_with = "signature")]
    key: Option<PathBuf>,
}

#[derive(Args)]
struct Index {
    /// The directory, as a server will show it.
    directory: PathBuf,
    /// The secret key; without one latest.json is to be signed with minisign, and counts nothing until then.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Machines take it for so many days, so that a server cannot show an old one for ever.
    #[arg(long, value_name = "DAYS")]
    valid_days: Option<u32>,
}

/// Runs `orlop update` with the arguments after that word.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    stderr::install();
    let done = match arguments.word {
        Word::Apply(arguments) => apply_payload(&arguments),
        Word::Check(arguments) => check_channel(&arguments),
        Word::Verify(arguments) => verify(&arguments),
        Word::Pack(arguments) => pack_payload(arguments),
        Word::Keygen { name } => keygen(&name),
        Word::Manifest { file } => manifest(&file),
        Word::Sign(arguments) => sign(&arguments),
        Word::Index(arguments) => index(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("orlop update: {error:#}");
        ExitCode::from(2)
    })
}

/// What clap has to say: help is no failure.
pub(crate) fn refuse(error: &clap::Error) -> ExitCode {
    let is_wrong = error.use_stderr();
    let _ = error.print();
    ExitCode::from(if is_wrong { 2 } else { 0 })
}

/// The machine's configuration; an empty one where there is none.
pub(crate) fn configuration() -> anyhow::Result<Machine> {
    match fs::read(COMPILED) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{COMPILED} is damaged")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Machine::default()),
        Err(e) => Err(e).with_context(|| format!("cannot read {COMPILED}")),
    }
}

/// The keys of a directory, of which there has to be one.
pub(crate) fn keyring(directory: &Path) -> anyhow::Result<Keyring> {
    let keys = Keyring::load(directory)?;
    if keys.is_empty() {
        bail!(
            "there is no key in {}, so that no payload can be trusted",
            directory.display()
        );
    }
    Ok(keys)
}

/// Opens a payload. A file is read through once, so that a damaged one changes nothing.
pub(crate) fn open(
    source: &str,
    keys: &Keyring,
    meter: &mut Meter,
) -> anyhow::Result<Payload<Box<dyn Read>>> {
    let reader: Box<dyn Read> = if source.contains("://") {
        let url: Url = source.parse()?;
        Box::new(Download::open(&url, Patience::default())?)
    } else {
        let open = || File::open(source).with_context(|| format!("cannot open {source}"));
        let payload =
            Payload::open(BufReader::new(open()?), keys).with_context(|| source.to_owned())?;
        check(payload, &mut |progress| meter.show(progress)).with_context(|| source.to_owned())?;
        Box::new(BufReader::new(open()?))
    };
    Payload::open(reader, keys).with_context(|| source.to_owned())
}

/// What the channel of the arguments, or of the configuration, offers.
pub(crate) fn offer(
    url: Option<&str>,
    channel: Option<&str>,
    keys: &Keyring,
) -> anyhow::Result<(channel::Offer, Url, String)> {
    let configured = configuration()?.update;
    let url = url
        .map(str::to_owned)
        .or_else(|| configured.url.map(|url| url.value));
    let url: Url = url
        .context("update.url is not configured; name a file, a URL, or --url")?
        .parse()?;
    let channel = channel
        .map(str::to_owned)
        .or_else(|| configured.channel.map(|channel| channel.value));
    let channel = channel.unwrap_or_else(|| channel::DEFAULT.to_owned());
    let (offer, payload) = channel::check(
        &url,
        &channel,
        system::architecture(),
        keys,
        now_s(),
        Patience::default(),
    )?;
    Ok((offer, payload, channel))
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn apply_payload(arguments: &Apply) -> anyhow::Result<ExitCode> {
    let Some(record) = Record::read(&arguments.from.place.record)? else {
        bail!("this machine was not started from a slot on a disk; `orlop install` puts it on one");
    };
    let keys = keyring(&arguments.from.keys.keys)?;
    let _lock = Lock::take()?;
    let (source, offered) = match &arguments.source {
        Some(source) => (source.clone(), None),
        None => {
            let (offer, payload, channel) = offer(
                arguments.from.url.as_deref(),
                arguments.from.channel.as_deref(),
                &keys,
            )?;
            if offer.version <= record.version && !arguments.allow_downgrade {
                println!("{channel} has {}; {} runs", offer.version, record.version);
                return Ok(ExitCode::SUCCESS);
            }
            (payload.to_string(), Some(offer.version))
        }
    };
    system::mend(&record.esp)?;
    let esp = Esp::mount(&record.esp)?;
    let mut entries = MountedEsp::open(&esp.path(""))
        .with_context(|| format!("cannot make {ENTRIES} on {}", record.esp.display()))?;
    let mut disk = DeviceDisk::open(&record.disk, true)
        .with_context(|| format!("cannot open {}", record.disk.display()))?;
    let mut meter = Meter::new();
    let payload = open(&source, &keys, &mut meter)?;
    let version = payload.manifest().version.clone();
    // The server cannot put an older payload, signed as it is, in the place of the offered one.
    if let Some(offered) = offered.filter(|offered| *offered != version) {
        bail!("the channel offers {offered}, but {source} brings {version}");
    }
    let signed = payload
        .signed()
        .map(|signed| signed.key.to_string())
        .unwrap_or_default();
    let options = Options {
        allow_downgrade: arguments.allow_downgrade,
        retry: arguments.retry,
    };
    let applied = apply(
        payload,
        &mut disk,
        &mut entries,
        &record.running(),
        options,
        &mut |progress| meter.show(progress),
    );
    let applied = match applied {
        // Asked for twice is done once.
        Err(ApplyError::Refused(refusal @ Refusal::Installed(_))) => {
            println!("{refusal}");
            return Ok(ExitCode::SUCCESS);
        }
        applied => applied?,
    };
    settle(&esp, &version, &record.version)?;
    drop(esp);
    println!(
        "{version} is in slot {} (signed by {signed}); a reboot starts it",
        applied.slot
    );
    // Standard error is the operator's; the log is to know it too.
    let text = format!(
        "update: {version} is in slot {}; {} runs until a reboot",
        applied.slot, record.version
    );
    kmsg::write(Priority::Notice, "orlop", &text);
    match arguments.reboot {
        true => Ok(systemctl::end("reboot", &[])),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// What is remembered of `new` is of another time; and when it is the older one, `running` makes way for it, since the loader takes
/// the newest version that is not bad.
fn settle(esp: &Esp, new: &Version, running: &Version) -> anyhow::Result<()> {
    let mut trials = Trials::load(esp);
    trials.forget(new);
    if new < running {
        let entries = esp.entries()?;
        let entry = entries.iter().find(|entry| entry.version == *running);
        let entry = entry.with_context(|| format!("{running} has no entry that makes way"))?;
        esp.rename(entry, &entry.condemned())?;
        trials.end(
            running,
            &format!("it made way for {new}, which was asked for"),
        );
    }
    if let Err(error) = trials.save(esp) {
        log::warn!("update: cannot write {}: {error}", trials::PATH);
    }
    Ok(())
}

fn check_channel(arguments: &Where) -> anyhow::Result<ExitCode> {
    let running = match Record::read(&arguments.place.record)? {
        Some(record) => record.version,
        None => system::version()?,
    };
    let keys = keyring(&arguments.keys.keys)?;
    let (offer, payload, channel) = offer(
        arguments.url.as_deref(),
        arguments.channel.as_deref(),
        &keys,
    )?;
    if offer.version <= running {
        println!(
            "{running} runs; {channel} has nothing newer ({})",
            offer.version
        );
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "{running} runs; {channel} has {} ({:.1} MiB): {payload}",
        offer.version,
        mib(offer.bytes)
    );
    Ok(ExitCode::SUCCESS)
}

fn verify(arguments: &Verify) -> anyhow::Result<ExitCode> {
    let keys = keyring(&arguments.keys.keys)?;
    let mut meter = Meter::new();
    let payload = open(&arguments.source, &keys, &mut meter)?;
    let manifest = payload.manifest().clone();
    let signed = payload.signed().cloned();
    if arguments.source.contains("://") {
        check(payload, &mut |progress| meter.show(progress))?;
    }
    println!("version       {}", manifest.version);
    println!("architecture  {}", manifest.architecture);
    println!("channel       {}", manifest.channel);
    println!("root hash     {}", manifest.root_hash);
    for (which, part) in manifest.parts() {
        println!(
            "{:<13} {:.1} MiB, {:.1} MiB stored",
            which.name(),
            mib(part.bytes),
            mib(part.stored_bytes)
        );
    }
    if let Some(signed) = signed {
        println!("signed by     {} ({})", signed.key, signed.comment);
    }
    Ok(ExitCode::SUCCESS)
}

fn pack_payload(arguments: Pack) -> anyhow::Result<ExitCode> {
    let key = arguments.key.as_deref().map(secret_key).transpose()?;
    let contents = Contents {
        version: arguments.version,
        architecture: arguments.architecture,
        channel: arguments.channel,
        root_hash: arguments.root_hash.parse().context("--root-hash")?,
        uki: arguments.uki,
        root: arguments.root,
        verity: arguments.verity,
        loader: arguments.loader,
    };
    let compressor = arguments
        .zstd
        .map_or(Compressor::BuiltIn, |level| Compressor::Zstd { level });
    let manifest = pack(&contents, &compressor, key.as_ref(), &arguments.output)?;
    let bytes = fs::metadata(&arguments.output)
        .context("cannot look at the payload")?
        .len();
    let signed = key.map_or_else(
        || "not signed".to_owned(),
        |key| format!("signed by {}", key.public().id),
    );
    println!(
        "{}: {} for {}, {:.1} MiB, {signed}",
        arguments.output.display(),
        manifest.version,
        manifest.architecture,
        mib(bytes)
    );
    Ok(ExitCode::SUCCESS)
}

fn secret_key(path: &Path) -> anyhow::Result<SecretKey> {
    SecretKey::parse(&read_bounded(path)?).with_context(|| path.display().to_string())
}

fn keygen(name: &Path) -> anyhow::Result<ExitCode> {
    let key = SecretKey::generate()?;
    // The name may have dots in it, as versions do.
    let with = |extension: &str| {
        let mut path = name.as_os_str().to_owned();
        path.push(extension);
        PathBuf::from(path)
    };
    let (secret, public) = (with(".key"), with(".pub"));
    let write = |path: &Path, text: &str, mode: u32| {
        // An existing key is never overwritten: what it signed would be lost.
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .with_context(|| format!("cannot make {}", path.display()))
    };
    write(&secret, &key.to_text(), 0o600)?;
    write(&public, &key.public().to_text(), 0o644)?;
    println!(
        "{} (keep it secret) and {}: key {}",
        secret.display(),
        public.display(),
        key.public().id
    );
    Ok(ExitCode::SUCCESS)
}

fn manifest(file: &Path) -> anyhow::Result<ExitCode> {
    let text = manifest_text(file)?;
    std::io::Write::write_all(&mut std::io::stdout().lock(), &text).context("cannot write")?;
    Ok(ExitCode::SUCCESS)
}

fn sign(arguments: &Sign) -> anyhow::Result<ExitCode> {
    let signature = match (&arguments.key, &arguments.signature) {
        (Some(key), _) => secret_key(key)?.sign(&manifest_text(&arguments.file)?, "orlop"),
        (None, Some(signature)) => read_bounded(signature)?,
        (None, None) => bail!("neither a signature nor a key"),
    };
    add_signature(&arguments.file, &signature)?;
    Ok(ExitCode::SUCCESS)
}

fn index(arguments: &Index) -> anyhow::Result<ExitCode> {
    let key = arguments.key.as_deref().map(secret_key).transpose()?;
    let mut latest = Latest::of(&channel::payloads(&arguments.directory)?)?;
    latest.expires_s = arguments
        .valid_days
        .map(|days| now_s() + u64::from(days) * 24 * 60 * 60);
    latest.write(&arguments.directory, key.as_ref())?;
    if key.is_none() {
        let file = arguments.directory.join(channel::FILE);
        println!("sign it now: minisign -S -m {}", file.display());
    }
    for (channel, architectures) in &latest.channels {
        for (architecture, offer) in architectures {
            println!(
                "{channel} {architecture}: {} ({})",
                offer.version, offer.payload
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_understood() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        let parse = |words: &[&str]| Arguments::try_parse_from(words);
        assert!(
            parse(&[
                "apply",
                "http://h/x",
                "--retry",
                "--allow-downgrade",
                "--reboot"
            ])
            .is_ok()
        );
        assert!(parse(&["apply"]).is_ok() && parse(&["check", "--channel", "beta"]).is_ok());
        assert!(parse(&["sign", "f"]).is_err(), "with what?");
        assert!(parse(&["sign", "f", "--key", "k"]).is_ok());
        assert!(parse(&[]).is_err());
    }

    /// A key, a payload and a channel made as the documentation says; only the slot is missing.
    #[test]
    fn a_payload_is_made_signed_verified_and_offered() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let hash = "5a".repeat(32);
        let image = orlop_boot::pe::sample(&format!("roothash={hash}"), 5000);
        for (name, bytes) in [
            ("uki", image.as_slice()),
            ("root", &[7; 8192]),
            ("verity", &[9; 4096]),
        ] {
            fs::write(path(name), bytes).unwrap();
        }
        let words = |words: &[&str]| run(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let (ok, wrong) = (ExitCode::SUCCESS, ExitCode::from(2));
        let (key, output) = (path("release"), path("orlop-1.update"));
        assert_eq!(words(&["keygen", &key]), ok);
        assert_eq!(words(&["keygen", &key]), wrong, "a key is not overwritten");
        let (uki, root, verity) = (path("uki"), path("root"), path("verity"));
        let pack = [
            "pack",
            "--version",
            "1",
            "--root-hash",
            &hash,
            "--uki",
            &uki,
            "--root",
            &root,
            "--verity",
            &verity,
            &output,
        ];
        assert_eq!(words(&pack), ok);
        let keys = path("");
        let verify = ["verify", "--keys", &keys, &output];
        assert_eq!(words(&verify), wrong, "it is not signed yet");
        assert_eq!(
            words(&["sign", &output, "--key", &format!("{key}.key")]),
            ok
        );
        assert_eq!(words(&verify), ok);
        assert_eq!(words(&["verify", "--keys", &path("none"), &output]), wrong);
        let secret = format!("{key}.key");
        assert_eq!(words(&["index", "--key", &secret, &keys]), ok);
        assert!(
            fs::read_to_string(path("latest.json"))
                .unwrap()
                .contains("orlop-1.update")
        );
        assert!(fs::exists(path("latest.json.minisig")).unwrap());
        assert_eq!(words(&["index", "--valid-days", "3", &keys]), ok);
        assert!(!fs::exists(path("latest.json.minisig")).unwrap());
        // No slots here.
        let record = path("no-record");
        assert_eq!(
            words(&["apply", &output, "--keys", &keys, "--record", &record]),
            wrong
        );
    }
}
