//! Quadlet's `.container` files (`podman-systemd.unit(5)`): each becomes a service that runs one container.

use crate::command::{Command, CommandFlags};
use crate::directive::{Directive, Draft, Reading, ignored, refused, set, unsupported};
use crate::name::UnitName;
use crate::problem::{Position, Severity};
use crate::service::{ContainerOrigin, KillMode, NotifyAccess, ServiceType};
use crate::syntax::Assignment;
use crate::unit::{Dependency, Relation};
use crate::value::{Signal, Span, parse_bool, parse_span};
use crate::words::Word;

/// The program that starts containers.
const PROGRAM: &str = "/usr/bin/orlop";
/// How long a container may take to stop when nobody says otherwise, as for `docker stop`.
const STOP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// How a key becomes arguments of `container run`.
#[derive(Clone, Copy)]
enum Form {
    /// Each assignment is one value.
    Each(&'static str),
    /// Each word of each assignment is one value.
    Words(&'static str),
    /// The last assignment counts.
    Last(&'static str),
    /// A flag without a value, if true.
    Flag(&'static str),
    /// Kept for [`ContainerDraft::finish`], which knows more: the last assignment.
    Text,
    /// The same: the words of all assignments.
    List,
    /// The same: a boolean.
    Switch,
}

/// The keys that have an effect, in the order in which their arguments are written.
const FORMS: &[(&str, Form)] = &[
    ("AddCapability", Form::Words("--cap-add")),
    ("AddDevice", Form::Each("--device")),
    ("AddHost", Form::Each("--add-host")),
    ("Annotation", Form::Words("--annotation")),
    ("ContainerName", Form::Text),
    ("DNS", Form::Each("--dns")),
    ("DNSOption", Form::Each("--dns-option")),
    ("DNSSearch", Form::Each("--dns-search")),
    ("DropCapability", Form::Words("--cap-drop")),
    ("Entrypoint", Form::Last("--entrypoint")),
    ("Environment", Form::Words("--env")),
    ("EnvironmentFile", Form::Each("--env-file")),
    ("Exec", Form::List),
    ("ExposeHostPort", Form::Each("--expose")),
    ("Group", Form::Text),
    ("GroupAdd", Form::Each("--group-add")),
    ("HostName", Form::Last("--hostname")),
    ("IP", Form::Last("--ip")),
    ("IP6", Form::Last("--ip6")),
    ("Image", Form::Text),
    ("Label", Form::Words("--label")),
    ("Memory", Form::Last("--memory")),
    ("Mount", Form::Each("--mount")),
    ("Network", Form::Each("--network")),
    ("NetworkAlias", Form::Each("--network-alias")),
    (
        "NoNewPrivileges",
        Form::Flag("--security-opt=no-new-privileges"),
    ),
    ("Notify", Form::Text),
    ("PidsLimit", Form::Last("--pids-limit")),
    ("PodmanArgs", Form::List),
    ("PublishPort", Form::Each("--publish")),
    ("Pull", Form::Last("--pull")),
    ("ReadOnly", Form::Flag("--read-only")),
    ("ReadOnlyTmpfs", Form::Switch),
    ("RunInit", Form::Flag("--init")),
    ("SeccompProfile", Form::Last("--security-opt=seccomp")),
    ("ShmSize", Form::Last("--shm-size")),
    ("StopSignal", Form::Last("--stop-signal")),
    ("StopTimeout", Form::Last("--stop-timeout")),
    ("Sysctl", Form::Words("--sysctl")),
    ("Tmpfs", Form::Each("--tmpfs")),
    ("Ulimit", Form::Each("--ulimit")),
    ("User", Form::Text),
    ("Volume", Form::Each("--volume")),
    ("WorkingDir", Form::Last("--workdir")),
];

const USER_NAMESPACE: &str = "user namespaces";
const LABELS: &str = "security labels";
const HEALTH: &str = "the container is not probed";

/// Keys that are known and have no effect.
static UNSUPPORTED: &[Directive] = &[
    ignored("AutoUpdate", "the image stays"),
    refused("CgroupsMode", "the container runs in the unit's cgroup"),
    refused("EnvironmentHost", "the host's environment"),
    refused("GIDMap", USER_NAMESPACE),
    refused("GlobalArgs", "there is no podman"),
    ignored("HealthCmd", HEALTH),
    ignored("HealthInterval", HEALTH),
    ignored("HealthLogDestination", HEALTH),
    ignored("HealthMaxLogCount", HEALTH),
    ignored("HealthMaxLogSize", HEALTH),
    ignored("HealthOnFailure", HEALTH),
    ignored("HealthRetries", HEALTH),
    ignored("HealthStartPeriod", HEALTH),
    ignored("HealthStartupCmd", HEALTH),
    ignored("HealthStartupInterval", HEALTH),
    ignored("HealthStartupRetries", HEALTH),
    ignored("HealthStartupSuccess", HEALTH),
    ignored("HealthStartupTimeout", HEALTH),
    ignored("HealthTimeout", HEALTH),
    ignored("LogDriver", "output goes to the journal"),
    ignored("LogOpt", "output goes to the journal"),
    refused("Mask", "extra masked paths"),
    refused("Pod", "pods"),
    ignored("ReloadCmd", "write ExecReload= in [Service]"),
    ignored("ReloadSignal", "write ExecReload= in [Service]"),
    refused("RemapGid", USER_NAMESPACE),
    refused("RemapUid", USER_NAMESPACE),
    refused("RemapUidSize", USER_NAMESPACE),
    refused("RemapUsers", USER_NAMESPACE),
    ignored("Retry", "the service's Restart= holds"),
    ignored("RetryDelay", "the service's RestartSec= holds"),
    refused("Rootfs", "containers without an image"),
    refused("Secret", "secrets"),
    refused("SecurityLabelDisable", LABELS),
    refused("SecurityLabelFileType", LABELS),
    refused("SecurityLabelLevel", LABELS),
    refused("SecurityLabelNested", LABELS),
    refused("SecurityLabelType", LABELS),
    refused("ServiceName", "the service is named as its file"),
    refused("StartWithPod", "pods"),
    refused("SubGIDMap", USER_NAMESPACE),
    refused("SubUIDMap", USER_NAMESPACE),
    ignored("Timezone", "the image's time zone holds"),
    refused("UIDMap", USER_NAMESPACE),
    refused("Unmask", "unmasked kernel paths"),
    refused("UserNS", USER_NAMESPACE),
    set("VolatileTmp", |_, a, r| r.ignore(a, 0, "use Tmpfs=/tmp")),
];

#[derive(Debug)]
struct Given {
    text: String,
    at: Position,
}

/// `[Container]` while it is read.
#[derive(Debug, Default)]
pub(crate) struct ContainerDraft {
    /// The values of each row of [`FORMS`], by index.
    given: Vec<Vec<Given>>,
    no_network_dependency: bool,
}

impl ContainerDraft {
    fn slot(&mut self, key: &str) -> Option<(&mut Vec<Given>, Form)> {
        let index = FORMS.iter().position(|(name, _)| *name == key)?;
        if self.given.len() < FORMS.len() {
            self.given.resize_with(FORMS.len(), Vec::new);
        }
        let (_, form) = FORMS.get(index)?;
        Some((self.given.get_mut(index)?, *form))
    }

    fn all(&self, key: &str) -> &[Given] {
        FORMS
            .iter()
            .position(|(name, _)| *name == key)
            .and_then(|index| self.given.get(index))
            .map_or(&[], Vec::as_slice)
    }

    fn last(&self, key: &str) -> Option<&str> {
        self.all(key).last().map(|given| given.text.as_str())
    }

    /// Takes in one assignment.
    pub(crate) fn apply(&mut self, a: &Assignment<'_>, reading: &mut Reading<'_>) {
        let Some((slot, form)) = self.slot(&a.key) else {
            return match UNSUPPORTED
                .binary_search_by(|row| row.name.cmp(&a.key))
                .ok()
                .and_then(|i| UNSUPPORTED.get(i))
            {
                Some(row) => unsupported(row.effect, a, reading),
                None => {
                    let what = format!("unknown key {} in section [Container], ignored", a.key);
                    reading.report(a.key_at, Severity::Warning, what);
                }
            };
        };
        let at = a.value.position(0);
        if a.value.text.is_empty() {
            slot.clear();
            return;
        }
        match form {
            Form::Words(_) | Form::List => {
                let words = reading.words(a, Severity::Error).unwrap_or_default();
                slot.extend(words.into_iter().map(|Word { text, offset, .. }| Given {
                    text,
                    at: a.value.position(offset),
                }));
            }
            Form::Each(_) => slot.extend(reading.text(a, Severity::Error).map(|text| Given {
                text: text.into_owned(),
                at,
            })),
            Form::Last(_) | Form::Text => {
                if let Some(text) = reading.text(a, Severity::Error) {
                    *slot = vec![Given {
                        text: text.into_owned(),
                        at,
                    }];
                }
            }
            Form::Flag(_) | Form::Switch => match parse_bool(&a.value.text) {
                Some(yes) => {
                    *slot = vec![Given {
                        text: if yes { "yes" } else { "" }.to_owned(),
                        at,
                    }]
                }
                None => reading.refuse(a, 0, &format!("{:?} is not a boolean", a.value.text)),
            },
        }
    }

    /// Takes in one assignment of `[Quadlet]`.
    pub(crate) fn apply_quadlet(&mut self, a: &Assignment<'_>, reading: &mut Reading<'_>) {
        if a.key == "DefaultDependencies" {
            let mut wanted = true;
            reading.bool(a, &mut wanted, true);
            self.no_network_dependency = !wanted;
        } else {
            let what = format!("unknown key {} in section [Quadlet], ignored", a.key);
            reading.report(a.key_at, Severity::Warning, what);
        }
    }

    /// Writes the service into the draft.
    pub(crate) fn finish(self, draft: &mut Draft, reading: &mut Reading<'_>) {
        let unit = reading.expander.name;
        let fragment = reading.expander.fragment;
        let directory = fragment
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        let fail = |reading: &mut Reading<'_>, at: Position, message: String| {
            reading.report(at, Severity::Error, message);
        };
        let Some(image) = self.all("Image").last() else {
            fail(
                reading,
                Position::default(),
                "no Image= in section [Container]".to_owned(),
            );
            return;
        };
        if image.text.ends_with(".image") || image.text.ends_with(".build") {
            fail(
                reading,
                image.at,
                format!(
                    "Image=: {} files are not supported, name the image itself",
                    image.text
                ),
            );
        }
        let name = self
            .last("ContainerName")
            .map_or_else(|| format!("systemd-{}", unit.stem()), str::to_owned);
        if !name.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'@' | b':' | b'\\')
        }) {
            fail(
                reading,
                Position::default(),
                format!("ContainerName=: {name:?} is not a valid container name"),
            );
        }
        let mut words: Vec<String> =
            vec!["container".into(), "run".into(), format!("--name={name}")];
        for ((key, form), given) in FORMS.iter().zip(&self.given) {
            for Given { text, at } in given {
                let (flag, value) = match form {
                    Form::Flag(flag) if !text.is_empty() => {
                        words.push((*flag).to_owned());
                        continue;
                    }
                    Form::Each(flag) | Form::Words(flag) | Form::Last(flag) => (flag, text),
                    Form::Flag(_) | Form::Text | Form::List | Form::Switch => continue,
                };
                let value = match *key {
                    "Volume" => match volume(value, directory) {
                        Ok(value) => {
                            draft.requires_mounts_for.extend(host_path(&value));
                            value
                        }
                        Err(message) => {
                            fail(reading, *at, message);
                            continue;
                        }
                    },
                    "EnvironmentFile" if !value.starts_with('/') => {
                        format!("{directory}/{}", value.strip_prefix("./").unwrap_or(value))
                    }
                    "Network" if value.ends_with(".network") || value.ends_with(".container") => {
                        fail(
                            reading,
                            *at,
                            format!(
                                "Network=: {value}: networks made by other units are not supported"
                            ),
                        );
                        continue;
                    }
                    _ => value.clone(),
                };
                words.push(format!("{flag}={value}"));
            }
        }
        match (self.last("User"), self.last("Group")) {
            (Some(user), Some(group)) => words.push(format!("--user={user}:{group}")),
            (Some(user), None) => words.push(format!("--user={user}")),
            (None, Some(_)) => fail(
                reading,
                Position::default(),
                "Group= in section [Container] needs User=".to_owned(),
            ),
            (None, None) => {}
        }
        words.extend(
            self.all("PodmanArgs")
                .iter()
                .map(|given| given.text.clone()),
        );
        words.push(image.text.clone());
        words.extend(self.all("Exec").iter().map(|given| given.text.clone()));

        let payload_notifies = match self.last("Notify").map(|text| (text, parse_bool(text))) {
            None | Some((_, Some(false))) => false,
            Some((_, Some(true))) => true,
            Some((text, None)) => {
                fail(
                    reading,
                    Position::default(),
                    format!("Notify=: {text:?} is not supported, only yes and no"),
                );
                false
            }
        };
        self.stop(draft, reading);
        if draft.written.service_type != Some(ServiceType::Oneshot) {
            let service_type = if payload_notifies {
                ServiceType::Notify
            } else {
                ServiceType::Container
            };
            draft.written.service_type = Some(service_type);
        }
        if payload_notifies {
            draft.written.notify_access.get_or_insert(NotifyAccess::All);
        }
        draft.written.kill_mode.get_or_insert(KillMode::Mixed);
        draft.written.delegate.get_or_insert(true);
        let service = &mut draft.service;
        service
            .syslog_identifier
            .get_or_insert_with(|| unit.stem().to_owned());
        service
            .exec_start
            .push(orlop(words, CommandFlags::default(), image.at));
        let cleanup = vec!["container".into(), "cleanup".into(), name.clone()];
        let flags = CommandFlags {
            ignore_failure: true,
            no_expansion: true,
            ..CommandFlags::default()
        };
        service.exec_stop_post.push(orlop(cleanup, flags, image.at));
        service.container = Some(ContainerOrigin {
            name,
            image: image.text.clone(),
            payload_notifies,
        });
        if !self.no_network_dependency
            && let Ok(on) = UnitName::parse("network-online.target")
        {
            draft.dependencies.push(Dependency {
                relation: Relation::Wants,
                on: on.clone(),
            });
            draft.dependencies.push(Dependency {
                relation: Relation::After,
                on,
            });
        }
    }

    /// PID 1 stops the container itself, so it has to know the signal and the time as well.
    fn stop(&self, draft: &mut Draft, reading: &mut Reading<'_>) {
        if let Some(Given { text, at }) = self.all("StopSignal").last() {
            match Signal::parse(text) {
                Some(signal) => {
                    draft.written.kill_signal.get_or_insert(signal);
                }
                None => reading.report(
                    *at,
                    Severity::Error,
                    format!("StopSignal=: {text:?} is not a signal"),
                ),
            }
        }
        let mut timeout = Span::Finite(STOP_TIMEOUT);
        if let Some(Given { text, at }) = self.all("StopTimeout").last() {
            match parse_span(text) {
                Some(span) => timeout = span,
                None => reading.report(
                    *at,
                    Severity::Error,
                    format!("StopTimeout=: {text:?} is not a number of seconds"),
                ),
            }
        }
        draft.written.timeout_stop.get_or_insert(timeout);
    }
}

fn orlop(words: Vec<String>, flags: CommandFlags, at: Position) -> Command {
    Command {
        program: PROGRAM.to_owned(),
        argv0: None,
        words,
        flags,
        at,
    }
}

/// A volume with its source made absolute where it is relative to the file.
fn volume(text: &str, directory: &str) -> Result<String, String> {
    let (source, rest) = text.split_once(':').unwrap_or((text, ""));
    if source.ends_with(".volume") {
        return Err(format!(
            "Volume=: {source}: .volume files are not supported, name the volume or a path"
        ));
    }
    match source.strip_prefix('.') {
        Some(relative)
            if !rest.is_empty() && (relative.is_empty() || relative.starts_with('/')) =>
        {
            Ok(format!("{directory}{relative}:{rest}"))
        }
        Some(relative) if relative.starts_with("./") && !rest.is_empty() => {
            Ok(format!("{directory}/{text}"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// The path on the host that a volume shows.
fn host_path(volume: &str) -> Option<String> {
    let (source, _) = volume.split_once(':')?;
    source.starts_with('/').then(|| source.to_owned())
}

/// What [`crate::Loader`] links when a `.container` file says `WantedBy=`.
pub(crate) fn is_install_key(section: &str, key: &str) -> bool {
    section == "Install"
        && matches!(
            key,
            "WantedBy" | "RequiredBy" | "UpheldBy" | "DefaultInstance"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted_and_apart() {
        assert!(
            UNSUPPORTED
                .windows(2)
                .all(|pair| pair[0].name < pair[1].name)
        );
        assert!(
            UNSUPPORTED
                .iter()
                .all(|row| FORMS.iter().all(|(name, _)| *name != row.name))
        );
    }

    #[test]
    fn relative_volumes_are_relative_to_the_file() {
        assert_eq!(
            volume("./data:/data", "/etc/c").unwrap(),
            "/etc/c/data:/data"
        );
        assert_eq!(
            volume("../data:/data:ro", "/etc/c").unwrap(),
            "/etc/c/../data:/data:ro"
        );
        assert_eq!(volume("named:/data", "/etc/c").unwrap(), "named:/data");
        assert_eq!(volume("/only/inside", "/etc/c").unwrap(), "/only/inside");
        assert!(volume("db.volume:/data", "/etc/c").is_err());
    }
}
