//! Unit files, drop-ins and the links that enable, start and mask units.

use super::files::decode;
use super::{Base, Plan};
use crate::machine::{Fleet, Machine, Store, Unit};
use crate::problem::{Problem, Source, Sourced, quoted};
use crate::scalar::{Content, UnitCommand};

const IMAGE: &str = "/usr/lib/orlop/units";
const CONFIGURED: &str = "/etc/systemd/system";
const RUNTIME: &str = "/run/systemd/system";
const QUADLETS: &str = "/etc/containers/systemd";
const RUNTIME_QUADLETS: &str = "/run/containers/systemd";

/// Suffixes of unit files (systemd.unit(5)).
const SUFFIXES: &[&str] = &[
    "service",
    "socket",
    "target",
    "timer",
    "path",
    "mount",
    "automount",
    "swap",
    "slice",
    "scope",
    "device",
];

/// Where a unit's file goes and what it is called as a unit.
struct Place {
    /// The unit's name, `web.service` also for `web.container`.
    name: String,
    /// The directory of its file.
    directory: &'static str,
    is_quadlet: bool,
}

pub(super) fn compile(machine: &Machine, base: &Base<'_>, plan: &mut Plan) {
    for unit in &machine.units {
        if let Err(problem) = compile_unit(unit, base, plan) {
            plan.problems.push(problem);
        }
    }
    if machine.install.disk.is_some() {
        // It does nothing on a machine that was started from a disk.
        let name = "orlop-install.service";
        start_at_boot(name, &format!("{IMAGE}/{name}"), plan);
    }
    fleet(machine, plan);
    if !machine.journal.forward.is_empty() {
        let name = "orlop-forward.service";
        start_at_boot(name, &format!("{IMAGE}/{name}"), plan);
    }
    if let Some(enabled) = &machine.store.enabled {
        // The store is a unit of the image like any other.
        match enabled.value {
            true => start_at_boot(
                "orlop-store.service",
                &format!("{IMAGE}/orlop-store.service"),
                plan,
            ),
            false => plan.link(
                format!("{RUNTIME}/orlop-store.service"),
                "/dev/null".to_owned(),
            ),
        }
    }
}

/// fleet's settings reach the agent as coreos-cloudinit gave them to fleetd: in its environment, by a drop-in.
fn fleet(machine: &Machine, plan: &mut Plan) {
    const UNIT: &str = "orlop-agent.service";
    let own;
    let fleet = match reached_by_tls(&machine.store, &machine.fleet) {
        Some(fleet) => {
            own = fleet;
            &own
        }
        None => &machine.fleet,
    };
    if let Some(enabled) = &fleet.enabled {
        match enabled.value {
            true => start_at_boot(UNIT, &format!("{IMAGE}/{UNIT}"), plan),
            false => plan.link(format!("{RUNTIME}/{UNIT}"), "/dev/null".to_owned()),
        }
    }
    let mut lines = String::new();
    let mut source = None;
    let mut set = |name: &str, value: Option<(String, &Source)>| {
        if let Some((value, from)) = value {
            let escaped = value
                .replace('\\', r"\\")
                .replace('"', r#"\""#)
                .replace('%', "%%");
            lines.push_str(&format!("Environment=\"FLEET_{name}={escaped}\"\n"));
            source.get_or_insert_with(|| from.clone());
        }
    };
    fn text<T: ToString>(value: &Option<Sourced<T>>) -> Option<(String, &Source)> {
        value
            .as_ref()
            .map(|value| (value.value.to_string(), &value.source))
    }
    set("METADATA", text(&fleet.metadata));
    set("PUBLIC_IP", text(&fleet.public_ip));
    set("ETCD_SERVERS", text(&fleet.etcd_servers));
    set("ETCD_CAFILE", text(&fleet.etcd_cafile));
    set("ETCD_CERTFILE", text(&fleet.etcd_certfile));
    set("ETCD_KEYFILE", text(&fleet.etcd_keyfile));
    set("DISABLE_ENGINE", text(&fleet.disable_engine));
    if let Some(source) = source {
        let path = format!("{RUNTIME}/{UNIT}.d/20-cloudinit.conf");
        plan.file(&path, format!("[Service]\n{lines}"), 0o644, &source);
    }
}

/// The agent's settings on a machine whose store speaks to clients by TLS alone: without others it uses the store's files.
fn reached_by_tls(store: &Store, fleet: &Fleet) -> Option<Fleet> {
    let urls = &store.listen_client_urls;
    let first = urls.first()?;
    let is_secure = |url: &&Sourced<String>| url.value.starts_with("https://");
    if fleet.etcd_servers.is_some() || !urls.iter().all(|url| is_secure(&url)) {
        return None;
    }
    let rest = first.value.strip_prefix("https://")?.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':')?;
    let host = match host {
        "0.0.0.0" | "[::]" => "127.0.0.1",
        host => host,
    };
    let mut fleet = fleet.clone();
    fleet.etcd_servers = Some(Sourced {
        value: format!("https://{host}:{port}"),
        source: first.source.clone(),
    });
    let authority = store
        .trusted_ca_file
        .as_ref()
        .or(store.peer_trusted_ca_file.as_ref());
    let files = [
        (&mut fleet.etcd_cafile, authority),
        (&mut fleet.etcd_certfile, store.cert_file.as_ref()),
        (&mut fleet.etcd_keyfile, store.key_file.as_ref()),
    ];
    for (file, stores) in files {
        if file.is_none() {
            *file = stores.cloned();
        }
    }
    Some(fleet)
}

fn compile_unit(unit: &Unit, base: &Base<'_>, plan: &mut Plan) -> Result<(), Problem> {
    let Some(name) = &unit.name else {
        return Ok(());
    };
    let runtime = unit.runtime.as_ref().is_some_and(|r| r.value);
    let place = place(&name.value, runtime).map_err(|why| {
        let message = format!("the unit {} is skipped: {why}", quoted(&name.value));
        Problem::error(&name.source, message)
    })?;
    let is_masked = unit.mask.as_ref().is_some_and(|m| m.value);
    if is_masked {
        let directory = if runtime { RUNTIME } else { CONFIGURED };
        plan.link(
            format!("{directory}/{}", place.name),
            "/dev/null".to_owned(),
        );
        return Ok(());
    }
    let file = format!("{}/{}", place.directory, name.value);
    if let Some(content) = &unit.content {
        let bytes = bytes_of(&content.value, &name.value, &content.source)?;
        plan.file(&file, bytes, 0o644, &content.source);
    }
    drop_ins(unit, &file, plan);

    let install = install(unit, &name.value, &place, base, plan);
    let fragment = fragment(&name.value, &file, unit, plan);
    let asked = unit.enable.as_ref().filter(|enable| enable.value);
    match install {
        // A Quadlet's [Install] holds without being enabled (podman-systemd.unit(5)); it has no other way to be.
        Some(install) if asked.is_some() || (place.is_quadlet && unit.enable.is_none()) => {
            let directory = if runtime || place.is_quadlet {
                RUNTIME
            } else {
                CONFIGURED
            };
            enable(&install, &place.name, &fragment, directory, plan);
            if let (Some(asked), true) = (asked, install.is_empty()) {
                let message = format!(
                    "{} can not be enabled: it has no [Install] section",
                    quoted(&name.value)
                );
                let problem = Problem::warning(&asked.source, message)
                    .hint("add one with WantedBy=multi-user.target, or use `command: start`");
                plan.problems.push(problem);
            }
        }
        Some(_) => {}
        None => {
            if let Some(asked) = asked {
                let message = format!(
                    "{} can not be enabled: the image has no such unit",
                    quoted(&name.value)
                );
                plan.problems.push(Problem::error(&asked.source, message));
            }
        }
    }
    let is_started = unit.command.as_ref().is_some_and(|command| {
        matches!(
            command.value,
            UnitCommand::Start | UnitCommand::Restart | UnitCommand::ReloadOrRestart
        )
    });
    if is_started {
        start_at_boot(&place.name, &fragment, plan);
    }
    Ok(())
}

/// `command: start`: wanted at this start of the machine, and of no other.
fn start_at_boot(name: &str, fragment: &str, plan: &mut Plan) {
    plan.link(
        format!("{RUNTIME}/multi-user.target.wants/{name}"),
        fragment.to_owned(),
    );
}

fn place(file_name: &str, runtime: bool) -> Result<Place, &'static str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if file_name.is_empty() || file_name.len() > 255 || !file_name.chars().all(is_name) {
        return Err("that is not a unit's name");
    }
    let (stem, suffix) = match file_name.rsplit_once('.') {
        Some((stem, suffix)) if !stem.is_empty() => (stem, suffix),
        _ => return Err("its name has no suffix such as .service or .container"),
    };
    match suffix {
        "container" => Ok(Place {
            name: format!("{stem}.service"),
            directory: if runtime { RUNTIME_QUADLETS } else { QUADLETS },
            is_quadlet: true,
        }),
        "network" | "netdev" | "link" => Err("links are configured under network"),
        _ if SUFFIXES.contains(&suffix) => Ok(Place {
            name: file_name.to_owned(),
            directory: if runtime { RUNTIME } else { CONFIGURED },
            is_quadlet: false,
        }),
        _ => Err("its suffix is not a kind of unit"),
    }
}

fn bytes_of(content: &Content, name: &str, source: &Source) -> Result<Vec<u8>, Problem> {
    decode(content, None)
        .map_err(|e| Problem::error(source, format!("the content of {} is {e}", quoted(name))))
}

fn drop_ins(unit: &Unit, file: &str, plan: &mut Plan) {
    for drop_in in &unit.drop_ins {
        let Some(name) = &drop_in.name else { continue };
        let is_file_name =
            name.value.len() <= 255 && !name.value.contains(|c: char| c == '/' || c.is_control());
        if !is_file_name || name.value.strip_suffix(".conf").is_none_or(str::is_empty) {
            let message = format!(
                "the drop-in {} is skipped: its name has to be NAME.conf",
                quoted(&name.value)
            );
            plan.problems.push(Problem::error(&name.source, message));
            continue;
        }
        let Some(content) = &drop_in.content else {
            continue;
        };
        match bytes_of(&content.value, &name.value, &content.source) {
            Ok(bytes) => plan.file(
                &format!("{file}.d/{}", name.value),
                bytes,
                0o644,
                &content.source,
            ),
            Err(problem) => plan.problems.push(problem),
        }
    }
}

/// The file that a link to the unit points to: its own, its template's, or the image's.
fn fragment(file_name: &str, file: &str, unit: &Unit, plan: &Plan) -> String {
    let is_planned = |path: &str| plan.files.iter().any(|f| f.path == path);
    if unit.content.is_some() || is_planned(file) {
        return file.to_owned();
    }
    let template = template(file_name);
    let candidates = template.iter().map(|t| t.as_str()).chain([file_name]);
    for name in candidates.clone() {
        for directory in [CONFIGURED, RUNTIME] {
            let path = format!("{directory}/{name}");
            if is_planned(&path) {
                return path;
            }
        }
    }
    format!("{IMAGE}/{}", template.as_deref().unwrap_or(file_name))
}

/// `web@.service` for `web@1.service`.
fn template(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_once('@')?;
    let (instance, suffix) = rest.rsplit_once('.')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{suffix}"))
}

/// What the unit's `[Install]` section asks for: directives and their words. `None` when there is no such unit.
fn install(
    unit: &Unit,
    name: &str,
    place: &Place,
    base: &Base<'_>,
    plan: &Plan,
) -> Option<Vec<(String, String)>> {
    let own = unit
        .content
        .as_ref()
        .and_then(|c| decode(&c.value, None).ok());
    let text = own.or_else(|| {
        // The unit's own name before its template's.
        [Some(name.to_owned()), template(name)]
            .into_iter()
            .flatten()
            .find_map(|name| {
                let path = format!("{}/{name}", place.directory);
                let planned = plan
                    .files
                    .iter()
                    .rev()
                    .find(|f| f.path == path)
                    .map(|f| f.content.clone());
                planned.or_else(|| (base.unit)(&name).map(String::into_bytes))
            })
    })?;
    Some(install_words(&String::from_utf8_lossy(&text)))
}

fn install_words(text: &str) -> Vec<(String, String)> {
    let mut words = Vec::new();
    let mut is_install = false;
    for line in text.replace("\\\n", " ").lines().map(str::trim) {
        if line.starts_with('[') {
            is_install = line == "[Install]";
        } else if let (true, Some((key, value))) = (
            is_install && !line.starts_with(['#', ';']),
            line.split_once('='),
        ) {
            let (key, value) = (key.trim(), value.trim());
            if value.is_empty() {
                words.retain(|(k, _)| k != key);
            }
            words.extend(
                value
                    .split_whitespace()
                    .map(|word| (key.to_owned(), word.to_owned())),
            );
        }
    }
    words
}

fn enable(
    install: &[(String, String)],
    name: &str,
    fragment: &str,
    directory: &str,
    plan: &mut Plan,
) {
    // A template is enabled through its default instance.
    let instance = install
        .iter()
        .find(|(key, _)| key == "DefaultInstance")
        .map(|(_, word)| word);
    let name = match (name.split_once("@."), instance) {
        (Some((prefix, suffix)), Some(instance)) => format!("{prefix}@{instance}.{suffix}"),
        _ => name.to_owned(),
    };
    let is_name =
        |word: &str| !word.contains('/') && !word.contains(char::is_control) && word.len() <= 255;
    for (key, word) in install.iter().filter(|(_, word)| is_name(word)) {
        match key.as_str() {
            "WantedBy" => plan.link(
                format!("{directory}/{word}.wants/{name}"),
                fragment.to_owned(),
            ),
            "RequiredBy" => plan.link(
                format!("{directory}/{word}.requires/{name}"),
                fragment.to_owned(),
            ),
            "Alias" => plan.link(format!("{directory}/{word}"), fragment.to_owned()),
            _ => {}
        }
    }
}
