//! Machines that find their cluster by a token, as processes on loopback under Debian's `etcdctl`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_store::node::Options;
use orlop_store::server::{Bootstrap, Joining, MEMBER_NAME, Settings, Tls, TlsFiles, Token};
use orlop_testing::{Authority, Etcdctl, Process, free_address, log_to_stderr};

/// Tells a child process of the test what to be: machine, directory, address for clients, address for peers, token, the
/// peer URLs that are asked, with commas between, and the directory of the certificates, or `-`.
const MACHINE: &str = "ORLOP_STORE_TEST_MACHINE";

/// The machine's store, when this binary is started by one of the tests below; else nothing.
#[test]
fn machine_of_a_cluster() {
    let Ok(words) = std::env::var(MACHINE) else {
        return;
    };
    let words: Vec<&str> = words.split(' ').collect();
    let [machine, data_dir, client, peer, token, seed, certificates] = words[..] else {
        panic!("{words:?}");
    };
    let files = |name: &str| {
        let directory = Path::new(certificates);
        (certificates != "-").then(|| TlsFiles {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
            authority: Some(directory.join("ca.crt")),
        })
    };
    let settings = Settings {
        name: machine.into(),
        data_dir: data_dir.into(),
        listen: match certificates {
            "-" => vec![client.parse().expect("an address")],
            _ => Vec::new(),
        },
        client_urls: vec![format!("http://{client}")],
        peer_listen: vec![peer.parse().expect("an address")],
        peer_urls: Vec::new(),
        bootstrap: Bootstrap::Join(Joining {
            token: Token::new(token.into()).expect("a token"),
            seeds: seed.split(',').map(str::to_owned).collect(),
            founds: None,
            machine: machine.into(),
        }),
        tls: Tls {
            listen: vec![client.parse().expect("an address")],
            clients: files("member"),
            peers: files(if machine.starts_with("client") {
                "client"
            } else {
                "member"
            }),
        },
        options: Options::default(),
    };
    log_to_stderr();
    if let Err(err) = orlop_store::server::run(&settings, |_| {}) {
        eprintln!("{machine}: {:#}", anyhow::Error::new(err));
        std::process::exit(3);
    }
}

struct Machine {
    name: String,
    data_dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    token: &'static str,
    seed: String,
    certificates: Option<PathBuf>,
    process: Option<Process>,
}

impl Machine {
    fn command(&self) -> Command {
        let words = [
            self.name.clone(),
            self.data_dir.display().to_string(),
            self.client.to_string(),
            self.peer.to_string(),
            self.token.to_owned(),
            self.seed.clone(),
            self.certificates
                .as_ref()
                .map_or("-".into(), |d| d.display().to_string()),
        ];
        let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
        command
            .args(["joining::machine_of_a_cluster", "--exact", "--nocapture"])
            .env(MACHINE, words.join(" "));
        command
    }

    fn start(&mut self) {
        let log = self.data_dir.with_extension("log");
        let process = Process::spawn(&mut self.command(), &log);
        self.process = Some(process.expect("the machine starts"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn etcdctl(&self) -> Etcdctl {
        let Some(directory) = &self.certificates else {
            return Etcdctl::new(self.client);
        };
        let file = |name| directory.join(name);
        Etcdctl::with_tls(self.client, &file("ca.crt"))
            .showing(&file("client.crt"), &file("client.key"))
    }

    fn wait_for(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        self.etcdctl().wait_for(words, wanted)
    }

    fn insist(&self, words: &[&str]) -> String {
        self.etcdctl().insist(words)
    }
}

/// Machines with one configuration: the first one's address and a token.
fn machines(directory: &Path, count: usize) -> Vec<Machine> {
    let seed = free_address();
    (0..count)
        .map(|i| Machine {
            name: format!("m{i}"),
            data_dir: directory.join(format!("m{i}")),
            client: free_address(),
            peer: if i == 0 { seed } else { free_address() },
            token: "one-for-all-of-them",
            seed: format!("http://{seed}"),
            certificates: None,
            process: None,
        })
        .collect()
}

/// Id and URL for peers of each voter that has started, by name.
fn voters(list: &str) -> Vec<(String, String, String)> {
    list.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split(", ").collect();
            match words[..] {
                [id, "started", name, peer, _, "false"] => {
                    Some((name.to_owned(), id.to_owned(), peer.to_owned()))
                }
                _ => None,
            }
        })
        .collect()
}

fn voter(list: &str, name: &str) -> Option<(String, String)> {
    let found = voters(list).into_iter().find(|(n, ..)| n == name)?;
    Some((found.1, found.2))
}

#[test]
fn machines_join_by_a_token_and_come_back_without_a_command() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 3);
    // In the wrong order: whoever cannot make the cluster waits for it.
    for machine in machines.iter_mut().rev() {
        machine.start();
    }
    let list = |machine: &Machine, wanted: &dyn Fn(&str) -> bool| {
        machine.wait_for(&["member", "list"], wanted)
    };
    let three = list(&machines[2], &|list| voters(list).len() == 3);
    assert_eq!(machines[2].insist(&["put", "k", "v"]), "OK");
    assert_eq!(machines[0].insist(&["get", "k", "--print-value-only"]), "v");

    // A new address: it is the same member.
    let (id, _) = voter(&three, "m2").expect("it is listed");
    machines[2].kill();
    machines[2].peer = free_address();
    machines[2].start();
    let url = format!("http://{}", machines[2].peer);
    list(&machines[0], &|list| {
        voter(list, "m2") == Some((id.clone(), url.clone()))
    });
    machines[2].wait_for(&["get", "k", "--print-value-only"], |said| said == "v");

    // An empty disk: it takes the place of the member that it was.
    let (id, _) = voter(&three, "m1").expect("it is listed");
    machines[1].kill();
    std::fs::remove_dir_all(&machines[1].data_dir).expect("it is there");
    machines[1].start();
    let replaced = |name: &'static str, id: String| {
        move |list: &str| {
            voters(list).len() == 3
                && list.lines().count() == 3
                && voter(list, name).is_some_and(|(now, _)| now != id)
        }
    };
    list(&machines[0], &replaced("m1", id));
    machines[1].wait_for(
        &["get", "k", "--print-value-only", "--consistency=s"],
        |said| said == "v",
    );

    // The machine whose address all are given loses its disk: it makes no second cluster.
    let (id, _) = voter(&three, "m0").expect("it is listed");
    machines[0].kill();
    std::fs::remove_dir_all(&machines[0].data_dir).expect("it is there");
    machines[0].start();
    list(&machines[1], &replaced("m0", id));
    machines[0].wait_for(&["get", "k", "--print-value-only"], |said| said == "v");

    // All of them at once.
    for machine in &mut machines {
        machine.kill();
    }
    for machine in &mut machines {
        machine.start();
    }
    machines[1].wait_for(&["get", "k", "--print-value-only"], |said| said == "v");
}

/// Flips a bit of an entry in the middle of the log, with whole blocks behind it.
fn damage_log(machine: &Machine) {
    let path = machine.data_dir.join("wal-0000000000000001");
    let mut bytes = std::fs::read(&path).expect("there is a log");
    let written = bytes.iter().rposition(|b| *b != 0).expect("it is used");
    // In a value: what fills a block up to its end is not looked at.
    let value = bytes[written / 2..].windows(9).position(|w| w == [b'v'; 9]);
    bytes[written / 2 + value.expect("values follow") + 4] ^= 0x10;
    std::fs::write(&path, bytes).expect("it can be written");
}

#[test]
fn a_member_with_a_damaged_log_fetches_its_state_from_the_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 3);
    for machine in &mut machines {
        machine.start();
    }
    let three = machines[2].wait_for(&["member", "list"], |list| voters(list).len() == 3);
    for i in 0..40 {
        let put = machines[2].insist(&["put", &format!("k{i}"), &"v".repeat(500)]);
        assert_eq!(put, "OK");
    }
    // The first one too, which would make a cluster if its directory were just empty and no one were there.
    for (damaged, other) in [(1, 2), (0, 1)] {
        let name = machines[damaged].name.clone();
        let (id, _) = voter(&three, &name).expect("it is listed");
        machines[damaged].kill();
        damage_log(&machines[damaged]);
        machines[damaged].start();
        machines[other].wait_for(&["member", "list"], |list| {
            voters(list).len() == 3
                && list.lines().count() == 3
                && voter(list, &name).is_some_and(|(now, _)| now != id)
        });
        let all = ["get", "k", "--prefix", "--keys-only", "--consistency=s"];
        machines[damaged].wait_for(&all, |keys| {
            keys.lines().filter(|line| line.starts_with('k')).count() == 40
        });
        let kept = machines[damaged].data_dir.join("damaged");
        assert!(kept.join("state.redb").exists(), "what there was is kept");
    }
}

#[test]
fn an_only_member_with_a_damaged_log_does_not_start_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 1);
    let machine = &mut machines[0];
    machine.start();
    for i in 0..40 {
        machine.insist(&["put", &format!("k{i}"), &"v".repeat(500)]);
    }
    machine.kill();
    damage_log(machine);
    let before = std::fs::read(machine.data_dir.join("wal-0000000000000001")).expect("a log");
    let output = machine.command().stderr(Stdio::piped()).output();
    let output = output.expect("it starts");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    for part in [
        "is damaged",
        "only member",
        "snapshot restore",
        "wal-0000000000000001 is damaged at byte",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let after = std::fs::read(machine.data_dir.join("wal-0000000000000001")).expect("a log");
    assert!(before == after, "nothing was touched");
}

#[test]
fn a_member_whose_data_another_version_wrote_leaves_it_alone_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 1);
    let machine = &mut machines[0];
    machine.start();
    machine.insist(&["put", "k", "v"]);
    machine.kill();
    let path = machine.data_dir.join("state.redb");
    // `docs/store-format.md`, "State"
    let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
    let state = redb::Database::open(&path).expect("there is a state");
    let transaction = state.begin_write().expect("it can be written");
    let mut table = transaction.open_table(meta).expect("it has a table");
    let before = table.insert("format", &1u32.to_le_bytes()[..]);
    assert!(before.expect("it can be written").is_some());
    drop(table);
    transaction.commit().expect("it can be written");
    drop(state);
    let output = machine.command().stderr(Stdio::piped()).output();
    let output = output.expect("it starts");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    let place = format!("the data in {} was written", machine.data_dir.display());
    for part in [
        place.as_str(),
        "another version of Orlop",
        "snapshot restore",
        "state format 1 is not known",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(path.exists(), "nothing is put aside");
}

#[test]
fn machines_that_look_for_one_another_become_a_cluster() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 3);
    let all: Vec<String> = machines
        .iter()
        .map(|machine| format!("http://{}", machine.peer))
        .collect();
    // The one that makes the cluster comes last: the others listen already, and have none to offer.
    for machine in machines.iter_mut().rev() {
        machine.seed = all.join(",");
        machine.start();
    }
    machines[2].wait_for(&["member", "list"], |list| voters(list).len() == 3);
}

#[test]
fn a_machine_with_another_token_stays_outside() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 2);
    machines[1].token = "a-guess";
    for machine in &mut machines {
        machine.start();
    }
    machines[0].insist(&["put", "k", "v"]);
    assert!(machines[1].etcdctl().run(&["get", "k"]).is_err());
    let list = machines[0].insist(&["member", "list"]);
    assert_eq!(list.lines().count(), 1, "{list}");
}

#[test]
fn the_sixth_machine_passes_its_clients_on_until_there_is_a_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut machines = machines(directory.path(), 6);
    let (last, first_five) = machines.split_last_mut().expect("there are six");
    for machine in first_five.iter_mut() {
        machine.start();
    }
    first_five[0].wait_for(&["member", "list"], |list| voters(list).len() == 5);
    last.start();
    assert_eq!(last.insist(&["put", "k", "v"]), "OK");
    let list = last.insist(&["member", "list"]);
    assert_eq!(list.lines().count(), 5, "{list}");
    assert_eq!(
        first_five[4].insist(&["get", "k", "--print-value-only"]),
        "v"
    );
    // The member that it passes clients on to dies: another one answers.
    let leader = first_five.iter_mut().find(|m| m.name == "m0");
    leader.expect("it is one of them").kill();
    last.wait_for(&["get", "k", "--print-value-only"], |said| said == "v");
    // One leaves for good, and there is a place.
    let (id, _) = voter(&list, "m0").expect("it is listed");
    last.insist(&["member", "remove", &id]);
    last.wait_for(&["member", "list"], |list| voter(list, "m5").is_some());
    last.wait_for(&["get", "k", "--print-value-only"], |said| said == "v");
}

/// An authority, a member's certificate and a client's.
fn make_certificates(directory: &Path) {
    let authority = Authority::new().expect("an authority");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.join(name), text).expect("it can be written");
    };
    write("ca.crt", &authority.pem);
    for (name, hosts) in [
        ("member", &[MEMBER_NAME, "127.0.0.1"][..]),
        ("client", &["client"]),
    ] {
        let signed = authority.sign(hosts).expect("a certificate");
        write(&format!("{name}.crt"), &signed.certificate);
        write(&format!("{name}.key"), &signed.key);
    }
}

#[test]
fn members_and_clients_talk_by_tls_alone_when_there_are_certificates() {
    let directory = tempfile::tempdir().expect("a directory");
    make_certificates(directory.path());
    let mut machines = machines(directory.path(), 4);
    for machine in &mut machines {
        machine.certificates = Some(directory.path().to_owned());
        machine.seed = machine.seed.replace("http://", "https://");
    }
    // A client's certificate of the same authority, and even the token, make no member.
    machines[3].name = "client-only".into();
    for machine in &mut machines {
        machine.start();
    }
    machines[0].wait_for(&["member", "list"], |list| {
        voters(list).len() == 3 && list.matches("https://127.0.0.1:").count() == 3
    });
    assert_eq!(machines[2].insist(&["put", "k", "v"]), "OK");
    assert_eq!(machines[0].insist(&["get", "k", "--print-value-only"]), "v");
    let list = machines[1].insist(&["member", "list"]);
    assert_eq!(list.lines().count(), 3, "{list}");
    // Whoever speaks no TLS, or shows no certificate, gets no answer.
    let certificates = machines[0].certificates.take();
    assert!(machines[0].etcdctl().run(&["get", "k"]).is_err());
    let authority = certificates.expect("it had some").join("ca.crt");
    let nobody = Etcdctl::with_tls(machines[0].client, &authority);
    assert!(nobody.run(&["get", "k"]).is_err());
}
