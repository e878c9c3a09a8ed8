//! `orlop.config=URL`: the configuration from a web server, before any unit runs.
//!
//! The network comes up by the same role that keeps it later, started for as long as the download takes; the role's unit then
//! finds the lease.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orlop_boot::modprobe::chain;
use orlop_update::fetch::{self, Patience};
use orlop_update::url::Url;

use super::Setup;

/// The word on the kernel command line.
pub(super) const WORD: &str = "orlop.config";

/// Where the network role leaves its leases, one file a link.
const LEASES: &str = "/run/orlop/net";

/// How long the network may take, in seconds: switches may hold a new link back for 30 s (IEEE 802.1D, forward delay twice).
const NETWORK_WAIT_S: &str = "60";

/// At most half a minute of pauses: a machine that is down for its configuration alone can not be looked into.
const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(10),
    attempts: 6,
    pause: Duration::from_secs(1),
};

/// What a URL may ask for by `${NAME}`.
#[derive(Debug, Default)]
struct Identity {
    mac: Option<String>,
    uuid: Option<String>,
    serial: Option<String>,
}

/// Fetches what `template` names, and gives the URL with it.
///
/// # Errors
/// A line with the URL and the reason.
pub(super) fn fetch(
    setup: &Setup,
    template: &str,
    most_bytes: u64,
) -> Result<(String, Vec<u8>), String> {
    let failed = |url: &str, why: String| format!("no configuration from {url}: {why}");
    // A URL that is none needs no network to be told.
    let _ = parse(&expand(template, &Identity::example())?)?;
    let mut role = start_network().map_err(|why| failed(template, why))?;
    let fetched = (|| {
        wait_for_network().map_err(|why| failed(template, why))?;
        let text = expand(template, &Identity::of_machine(setup))?;
        let url = parse(&text)?;
        log::info!("setup: fetching the configuration from {text}");
        let bytes =
            fetch::get(&url, most_bytes, PATIENCE).map_err(|error| failed(&text, chain(&error)))?;
        Ok((text, bytes))
    })();
    // Its unit takes over: addresses stay on the link, and the lease is on record.
    let _ = role.kill();
    let _ = role.wait();
    fetched
}

fn parse(text: &str) -> Result<Url, String> {
    if text
        .get(..8)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
    {
        return Err(format!(
            "no configuration from {text}: https is not supported here, only http"
        ));
    }
    text.parse()
        .map_err(|error| format!("{WORD}={text}: {error}"))
}

fn role(words: &[&str]) -> Result<Child, String> {
    // A write to it is a line of the kernel's log.
    let log = File::options().write(true).open("/dev/kmsg");
    let stdio = |log: std::io::Result<File>| log.map_or_else(|_| Stdio::null(), Stdio::from);
    Command::new("/proc/self/exe")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stdio(log))
        .spawn()
        .map_err(|error| format!("cannot start `orlop {}`: {error}", words.join(" ")))
}

fn start_network() -> Result<Child, String> {
    role(&["net"])
}

fn wait_for_network() -> Result<(), String> {
    let waited = role(&["net", "--wait-online", NETWORK_WAIT_S])?.wait();
    match waited {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("no link got an address within {NETWORK_WAIT_S} s")),
        Err(error) => Err(format!("cannot wait for the network: {error}")),
    }
}

impl Identity {
    /// Something for every name.
    fn example() -> Self {
        let some = || Some("x".to_owned());
        Self {
            mac: some(),
            uuid: some(),
            serial: some(),
        }
    }

    fn of_machine(setup: &Setup) -> Self {
        let read = |path: &str| {
            let text = fs::read_to_string(setup.path(path)).ok()?;
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        Self {
            mac: leased_link(&setup.path(LEASES))
                .and_then(|link| read(&format!("/sys/class/net/{link}/address"))),
            uuid: read("/sys/class/dmi/id/product_uuid").map(|uuid| uuid.to_ascii_lowercase()),
            serial: read("/sys/class/dmi/id/product_serial"),
        }
    }
}

/// The link that got an address: the first by name.
fn leased_link(leases: &Path) -> Option<String> {
    let mut links: Vec<String> = fs::read_dir(leases)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let link = name.strip_prefix("lease-")?.strip_suffix(".json")?;
            Some(link.to_owned())
        })
        .collect();
    links.sort();
    links.into_iter().next()
}

/// Puts the machine's values in place of `${mac}`, `${uuid}` and `${serial}`.
fn expand(template: &str, identity: &Identity) -> Result<String, String> {
    let mut url = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        url.push_str(before);
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| format!("{WORD}={template}: a ${{ is not closed"))?;
        let value = match name {
            "mac" => &identity.mac,
            "uuid" => &identity.uuid,
            "serial" => &identity.serial,
            _ => {
                return Err(format!(
                    "{WORD}={template}: there is no ${{{name}}}, only ${{mac}}, ${{uuid}} and ${{serial}}"
                ));
            }
        };
        let value = value
            .as_ref()
            .ok_or_else(|| format!("{WORD}={template}: this machine has no {name}"))?;
        push_escaped(&mut url, value);
        rest = after;
    }
    url.push_str(rest);
    Ok(url)
}

/// Appends `value` as a part of a path (RFC 3986 §3.3): `pchar` without what separates arguments.
fn push_escaped(url: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                url.push(char::from(byte));
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            mac: Some("52:54:00:12:34:56".to_owned()),
            uuid: Some("5b1c0f6e-0000-4000-8000-0123456789ab".to_owned()),
            serial: Some("To be filled/100%".to_owned()),
        }
    }

    #[test]
    fn the_machines_values_stand_in_the_url() {
        let url = expand("http://ship/${mac}/${uuid}?s=${serial}#", &identity()).unwrap();
        assert_eq!(
            url,
            "http://ship/52:54:00:12:34:56/5b1c0f6e-0000-4000-8000-0123456789ab?s=To%20be%20filled%2F100%25#"
        );
        assert!(parse(&url).is_ok());
        assert_eq!(
            expand("http://ship/$x{", &identity()).unwrap(),
            "http://ship/$x{"
        );
    }

    #[test]
    fn what_is_not_known_is_named() {
        let nobody = Identity::default();
        for (template, part) in [
            ("http://ship/${mac}", "no mac"),
            ("http://ship/${asset}", "no ${asset}, only ${mac}"),
            ("http://ship/${mac", "not closed"),
        ] {
            let said = expand(template, &nobody).unwrap_err();
            assert!(said.contains(part) && said.contains(template), "{said}");
        }
        assert!(parse("https://ship/x").unwrap_err().contains("only http"));
        assert!(parse("ship/x").is_err());
    }

    #[test]
    fn the_link_with_a_lease_is_the_first() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(leased_link(directory.path()), None);
        for name in [
            "online",
            "lease-eth1.json",
            "lease-eth0.json",
            "lease-x.new",
        ] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(leased_link(directory.path()).as_deref(), Some("eth0"));
    }
}
