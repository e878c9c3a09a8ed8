//! A cluster of one: units that fleetctl places on the machine that it is asked on.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use orlop_qemu::guest::Network;
use orlop_qemu::process;
use orlop_testing::Process;
use orlop_tests::{Scenario, products};

const USER_DATA: &str = "#cloud-config
hostname: alone
data:
  disk: serial=orlop-data
store:
  enabled: true
write_files:
  - path: /etc/units/hello@.service
    content: |
      [Service]
      ExecStart=/bin/sh -c 'echo hello %i; exec sleep 1000'
      MemoryMax=16M
      [X-Fleet]
      MachineMetadata=role=web
      Publish=hello:8000
  - path: /etc/units/large.service
    content: |
      [Service]
      ExecStart=/bin/sleep 1000
      MemoryMax=1T
  - path: /etc/units/bad.service
    content: |
      [Service]
      Type=oneshot
      ExecStart=/bin/sh -c 'echo the reason; exit 7'
  - path: /etc/units/enabled.service
    content: |
      [Service]
      ExecStart=/bin/sleep 1000
      [Install]
      WantedBy=multi-user.target
coreos:
  fleet:
    metadata: role=web
  units:
    - name: fleet.service
      command: start
";

#[test]
fn a_cluster_of_one_runs_what_fits_and_says_why_it_does_not_run_the_rest() {
    let mut alone = Scenario::start("test-fleet", USER_DATA, |_| Ok(()));
    alone.need("core gets in", |guest| guest.wait_for_ssh().map(|_| ()));
    alone.command_becomes("the machine registers", "fleetctl list-machines", |text| {
        text.starts_with("MACHINE\t") && text.contains("role=web")
    });
    alone.command(
        "start ends when the unit runs",
        "cd /etc/units && fleetctl start hello@1 hello@2 && systemctl is-active hello@1 hello@2",
        |text| {
            text.contains("Unit hello@2.service launched on ") && text.ends_with("active\nactive\n")
        },
    );
    alone.command("the table is fleet's", "fleetctl list-units", |text| {
        text.starts_with("UNIT\t\tMACHINE\t") && text.contains("\tactive\trunning\n")
    });
    alone.command("the log is there", "fleetctl journal hello@1", |text| {
        text.contains("hello 1")
    });
    alone.command("status is systemctl's", "fleetctl status hello@1", |text| {
        text.contains("hello@1.service")
    });
    alone.command(
        "what does not fit is told",
        "cd /etc/units && fleetctl start large.service 2>&1; echo code $?; fleetctl why large",
        |text| text.matches("insufficient memory: asks 1T").count() == 2 && text.contains("code 1"),
    );
    alone.command(
        "what is ignored is told",
        "cd /etc/units && fleetctl submit enabled.service 2>&1",
        |text| text.contains("[Install] is ignored (WantedBy)"),
    );
    alone.command(
        "why one runs names no machine that refuses it",
        "fleetctl why hello@1",
        |text| text.contains(", number ") && !text.contains("insufficient"),
    );
    alone.command(
        "what fails is told with its log",
        "cd /etc/units && fleetctl start bad.service 2>&1; echo code $?",
        |text| {
            text.contains("failed on ") && text.contains("the reason") && text.contains("code 1")
        },
    );
    let pid = "systemctl show -p MainPID hello@1.service";
    alone.command(
        "a restart of the agent restarts nothing",
        &format!(
            "before=$({pid}); sudo systemctl restart fleet.service; sleep 3; test \"$before\" = \"$({pid})\" && echo same"
        ),
        |text| text.contains("same"),
    );
    alone.command(
        "destroyed units are gone",
        "fleetctl destroy hello@1 && ls /run/fleet/units",
        |text| {
            let mut lines = text.lines();
            lines.next() == Some("Destroyed hello@1.service")
                && lines.all(|line| !line.contains("hello@1"))
        },
    );
    alone.power_off();
    alone.switch_on();
    alone.need("core gets in again", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    alone.command_becomes(
        "after a boot the unit is started again, once the store is there",
        "systemctl is-active hello@2.service",
        |text| text == "active\n",
    );
    alone.power_off();
    alone.finish();
}

/// What is added to the `store:` of a machine that `orlop cluster new` has made.
const CLIENTS_WITH_CERTIFICATES: &str = "
  listen_client_urls: [\"https://127.0.0.1:2379\"]
  advertise_client_urls: [\"https://127.0.0.1:2379\"]
  cert_file: /etc/orlop/store/member.crt
  key_file: /etc/orlop/store/member.key
  trusted_ca_file: /etc/orlop/store/ca.crt
";

/// And behind its files.
const FLEET: &str = "  - path: /etc/units/hello.service
    content: |
      [Service]
      ExecStart=/bin/sh -c 'echo hello; exec sleep 1000'
data:
  disk: serial=orlop-data
fleet:
  enabled: true
";

#[test]
fn a_store_that_wants_certificates_serves_the_machine_that_has_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("cluster");
    let made = Command::new(&products().binary)
        .args(["cluster", "new", "1", "--output"])
        .arg(&output)
        .output()
        .expect("the binary runs here");
    assert!(made.status.success(), "{made:?}");
    let machine = std::fs::read_to_string(output.join("m1.yaml")).expect("it was made");
    let store = format!("store:{CLIENTS_WITH_CERTIFICATES}");
    let user_data = machine.replacen("store:\n", &store, 1) + FLEET;
    let mut alone = Scenario::start("test-fleet-tls", &user_data, |_| Ok(()));
    alone.need("core gets in", |guest| guest.wait_for_ssh().map(|_| ()));
    alone.command_becomes(
        "the agent has a certificate, and the machine registers",
        "fleetctl list-machines",
        |text| text.starts_with("MACHINE\t") && text.lines().count() == 2,
    );
    alone.command(
        "units are placed",
        "fleetctl start /etc/units/hello.service && systemctl is-active hello",
        |text| text.ends_with("active\n"),
    );
    let etcdctl =
        "sudo etcdctl --endpoints https://127.0.0.1:2379 --cacert /etc/orlop/store/ca.crt";
    alone.command(
        "etcdctl gets in with a certificate alone",
        &format!(
            "{etcdctl} --cert /etc/orlop/store/member.crt --key /etc/orlop/store/member.key put k v && \
             {etcdctl} --command-timeout 3s get k 2>/dev/null || echo code $?"
        ),
        |text| text == "OK\ncode 1\n",
    );
    alone.command(
        "nobody listens without TLS",
        "sudo etcdctl --endpoints http://127.0.0.1:2379 --command-timeout 3s get k >/dev/null 2>&1; echo code $?",
        |text| text == "code 1\n",
    );
    alone.power_off();
    alone.finish();
}

/// As people wrote it for CoreOS; DISCOVERY is the URL.
const FOUND_BY_URL: &str = "#cloud-config
hostname: found
data:
  disk: serial=orlop-data
coreos:
  etcd2:
    name: found
    discovery: DISCOVERY
    initial-advertise-peer-urls: http://$private_ipv4:2380
    listen-peer-urls: http://$private_ipv4:2380
    advertise-client-urls: http://$private_ipv4:2379
    listen-client-urls: http://0.0.0.0:2379,http://0.0.0.0:4001
  units:
    - name: etcd2.service
      command: start
    - name: fleet.service
      command: start
";

#[test]
fn a_coreos_machine_finds_its_cluster_at_a_discovery_url() {
    let directory = tempfile::tempdir().expect("a directory");
    let [client, peer] = [(); 2].map(|()| orlop_testing::free_port().expect("a port"));
    let url = |port| format!("http://127.0.0.1:{port}");
    let mut store = Command::new(&products().binary);
    store.args(["store", "--name", "discovery", "--data-dir"]);
    store.arg(directory.path().join("data"));
    for (flag, port) in [
        ("--listen-client-urls", client),
        ("--advertise-client-urls", client),
        ("--listen-peer-urls", peer),
        ("--initial-advertise-peer-urls", peer),
    ] {
        store.arg(flag).arg(url(port));
    }
    let _store = Process::spawn(&mut store, &directory.path().join("store.log")).expect("a store");
    let etcdctl = |words: &[&str]| {
        let mut etcdctl = Command::new(&products().binary);
        etcdctl.args(["etcdctl", "--endpoints"]).arg(url(client));
        etcdctl.args(words).env("ETCDCTL_API", "2");
        let output = etcdctl.output().expect("the binary runs here");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    process::poll("the discovery service", deadline, || {
        Ok((etcdctl(&["set", "/discovery/token/_config/size", "1"]) == "1\n").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}"));

    // 10.0.2.2 is the host, as the guest sees it.
    let discovery = format!("http://10.0.2.2:{client}/v2/keys/discovery/token");
    let user_data = FOUND_BY_URL.replace("DISCOVERY", &discovery);
    let mut found = Scenario::start("test-discovery", &user_data, |machine| {
        machine.network = Network::Open;
        Ok(())
    });
    found.need("core gets in", |guest| guest.wait_for_ssh().map(|_| ()));
    found.command_becomes(
        "the machine is a member, and registers",
        "ETCDCTL_API=2 etcdctl member list && fleetctl list-machines --full",
        |text| {
            text.contains(
                "name=found peerURLs=http://10.0.2.15:2380 clientURLs=http://10.0.2.15:2379",
            ) && text.contains("MACHINE\t")
        },
    );
    found.command(
        "both of etcd's ports answer",
        "etcdctl put k v && etcdctl --endpoints http://127.0.0.1:4001 get k",
        |text| text == "OK\nk\nv\n",
    );
    found.check("the URL has its entry", |_| {
        let entries = etcdctl(&["ls", "/discovery/token"]);
        let entry = etcdctl(&["get", entries.trim()]);
        ensure!(
            entries.lines().count() == 1 && entry == "found=http://10.0.2.15:2380\n",
            "{entries}{entry}"
        );
        Ok(())
    });
    found.power_off();
    found.finish();
}
