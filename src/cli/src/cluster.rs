//! `orlop cluster new N`: what N machines need to form one store: an authority, a token, and a configuration for each.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The most machines of one cluster: five vote, the others pass their clients on.
const MOST: u16 = 1000;
const DIRECTORY: &str = "/etc/orlop/store";

#[derive(Parser)]
#[command(
    name = "orlop cluster",
    no_binary_name = true,
    about = "A cluster's secrets and configurations"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes an authority (ca.crt, ca.key), a token, a certificate for etcdctl, and one cloud-config a machine
    New {
        /// How many machines
        #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)))]
        machines: u16,
        /// Addresses of machines, the first one's first; it makes the cluster
        #[arg(long, value_delimiter = ',')]
        join: Vec<IpAddr>,
        /// The directory that is made
        #[arg(long, default_value = "cluster")]
        output: PathBuf,
    },
}

/// Runs the command. Ends with 1 on a failure, 2 on a command line that is not understood.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(err) => {
            // A closed output changes nothing.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    let Command::New {
        machines,
        join,
        output,
    } = arguments.command;
    match new(machines, &join, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("orlop cluster: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// A certificate and its key, PEM.
struct Pair {
    certificate: String,
    key: String,
}

fn new(machines: u16, join: &[IpAddr], output: &Path) -> anyhow::Result<()> {
    if machines > 1 && join.is_empty() {
        bail!("--join needs the address of the first machine: the others look for it there");
    }
    fs::create_dir(output).with_context(|| format!("make the directory {}", output.display()))?;
    let authority_key = KeyPair::generate().context("make a key")?;
    let authority = authority()
        .self_signed(&authority_key)
        .context("sign the authority")?;
    let authority_pem = authority.pem();
    let issuer = Issuer::new(self::authority(), &authority_key);
    let token = token()?;
    write(output, "ca.crt", &authority_pem, 0o644)?;
    write(output, "ca.key", &authority_key.serialize_pem(), 0o600)?;
    write(output, "token", &format!("{token}\n"), 0o600)?;
    let client = issue(&issuer, "client", &["client".to_owned()], false)?;
    write(output, "client.crt", &client.certificate, 0o644)?;
    write(output, "client.key", &client.key, 0o600)?;
    for number in 1..=machines {
        let name = format!("m{number}");
        let names = [
            orlop_store::server::MEMBER_NAME.to_owned(),
            "localhost".to_owned(),
            name.clone(),
        ];
        let pair = issue(&issuer, &name, &names, true)?;
        let text = cloud_config(&name, &token, join, &authority_pem, &pair);
        write(output, &format!("{name}.yaml"), &text, 0o600)?;
    }
    let output = output.display();
    match machines {
        1 => println!("{output}: an authority, a token, and m1.yaml for the machine"),
        _ => println!(
            "{output}: an authority, a token, and m1.yaml to m{machines}.yaml, one for each machine"
        ),
    }
    Ok(())
}

/// 256 random bits.
fn token() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    let mut random = fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    io::Read::read_exact(&mut random, &mut bytes).context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Orlop store");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn issue(
    issuer: &Issuer<'_, &KeyPair>,
    name: &str,
    names: &[String],
    serves: bool,
) -> anyhow::Result<Pair> {
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::new(names.to_vec()).context("name a certificate")?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if serves {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        params.subject_alt_names.push(SanType::IpAddress(loopback));
    }
    let certificate = params
        .signed_by(&key, issuer)
        .context("sign a certificate")?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn write(directory: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let path = directory.join(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .with_context(|| format!("make {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))
}

fn cloud_config(name: &str, token: &str, join: &[IpAddr], authority: &str, pair: &Pair) -> String {
    let join: Vec<String> = join.iter().map(|ip| format!("\"{ip}\"")).collect();
    let mut out = format!(
        "#cloud-config\nhostname: {name}\nstore:\n  enabled: true\n  token: {token}\n  join: [{}]\n",
        join.join(", ")
    );
    if name == "m1" {
        out.push_str("  bootstrap: true\n");
    }
    let files = [
        ("peer_trusted_ca_file", "ca.crt", authority),
        ("peer_cert_file", "member.crt", &pair.certificate),
        ("peer_key_file", "member.key", &pair.key),
    ];
    for (key, file, _) in files {
        out.push_str(&format!("  {key}: {DIRECTORY}/{file}\n"));
    }
    out.push_str("write_files:\n");
    for (_, file, text) in files {
        out.push_str(&format!(
            "  - path: {DIRECTORY}/{file}\n    permissions: \"0600\"\n    content: |\n"
        ));
        for line in text.lines() {
            out.push_str(&format!("      {line}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_a_good_configuration_for_each_machine() {
        let scratch = tempfile::tempdir().expect("a directory");
        let output = scratch.path().join("c");
        let first: IpAddr = [10, 0, 0, 1].into();
        new(3, &[first], &output).expect("it is written");
        let token = fs::read_to_string(output.join("token")).expect("it is there");
        for name in ["m1", "m2", "m3"] {
            let text = fs::read(output.join(format!("{name}.yaml"))).expect("it is there");
            let (machine, problems) = orlop_config::load(vec![orlop_config::Input {
                name: name.into(),
                kind: orlop_config::Kind::CloudConfig,
                text,
            }]);
            assert_eq!(problems, []);
            let found = machine.store.token.expect("it has the token");
            assert_eq!(found.value.reveal(), token.trim());
            assert_eq!(machine.store.bootstrap.is_some(), name == "m1");
            assert_eq!(machine.write_files.len(), 3);
        }
        assert!(new(3, &[first], &output).is_err(), "nothing is overwritten");
    }

    #[test]
    fn several_machines_need_an_address() {
        let scratch = tempfile::tempdir().expect("a directory");
        assert!(new(2, &[], &scratch.path().join("c")).is_err());
        new(1, &[], &scratch.path().join("d")).expect("one needs no other");
    }
}
