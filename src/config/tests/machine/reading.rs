//! Text to values and problems.

use std::io::Write;

use orlop_config::{DiskName, Input, Kind, Machine, load};

use crate::{input, lines, read, user_data};

fn hostname(machine: &Machine) -> Option<&str> {
    machine
        .hostname
        .as_ref()
        .map(|hostname| hostname.value.as_str())
}

#[test]
fn a_later_input_wins_value_by_value() {
    let (machine, problems) = load(vec![
        input(
            Kind::MetaData,
            "meta-data",
            "instance-id: i-1\nlocal-hostname: from-meta\npublic-keys:\n  - ssh-rsa AAA a\n",
        ),
        user_data(
            "hostname: from-user\nconntrack: {max: 1000, buckets: 10}\nssh_authorized_keys: [ssh-rsa BBB b]\n",
        ),
        input(
            Kind::KernelCommandLine,
            "kernel command line",
            "root=/dev/vda orlop.conntrack.max=2000 orlop.sysctl.net.core.somaxconn=4096 \
             orlop.data.disk=/dev/vdb orlop.data.wipe orlop.rescue orlop.network.nameservers=10.0.0.1,10.0.0.2",
        ),
    ]);
    assert_eq!(lines(&problems), [""; 0]);
    assert_eq!(hostname(&machine), Some("from-user"));
    assert_eq!(
        machine.conntrack.max.as_ref().map(|max| max.value),
        Some(2000)
    );
    assert_eq!(
        machine
            .conntrack
            .buckets
            .as_ref()
            .map(|buckets| buckets.value),
        Some(10)
    );
    assert_eq!(machine.sysctl.0[0].key, "net.core.somaxconn");
    assert_eq!(
        machine.data.disk.as_ref().map(|disk| &disk.value),
        Some(&DiskName::Path("/dev/vdb".to_owned()))
    );
    assert_eq!(
        machine.data.wipe.as_ref().map(|wipe| wipe.value),
        Some(true)
    );
    assert_eq!(machine.network.nameservers.len(), 2);
    let keys: Vec<_> = machine
        .ssh_authorized_keys
        .0
        .iter()
        .map(|key| key.value.as_str())
        .collect();
    assert_eq!(
        keys,
        ["ssh-rsa AAA a", "ssh-rsa BBB b"],
        "keys of all sources may log in"
    );
    let source = machine
        .conntrack
        .max
        .as_ref()
        .map(|max| max.source.to_string());
    assert_eq!(source.as_deref(), Some("kernel command line:1:15"));
}

#[test]
fn a_broken_yaml_is_one_line_and_leaves_the_rest_of_the_machine() {
    let (machine, problems) = load(vec![
        input(Kind::MetaData, "meta-data", "local-hostname: kept\n"),
        user_data("hostname: lost\nusers:\n  - name: x\n   y: [\n"),
    ]);
    let problems = lines(&problems);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("user-data:5:4: error: broken YAML: "),
        "{}",
        problems[0]
    );
    assert_eq!(
        hostname(&machine),
        Some("kept"),
        "half of a broken configuration is not applied"
    );
}

#[test]
fn an_unknown_key_is_reported_with_the_nearest_one_and_the_rest_applies() {
    let (machine, problems) = read("hostnme: a\nhostname: b\n");
    assert_eq!(
        problems,
        [
            "user-data:2:1: warning: unknown key \"hostnme\"; it has no effect; did you mean \"hostname\"?"
        ]
    );
    assert_eq!(hostname(&machine), Some("b"));
}

#[test]
fn a_value_of_the_wrong_type_is_reported_and_the_rest_applies() {
    let (machine, problems) =
        read("hostname: [a]\ndata: {wipe: 1, disk: /dev/vdb}\nconntrack: {max: many}\nsysctl: 3\n");
    assert_eq!(
        problems,
        [
            "user-data:2:11: error: hostname wants a host name, not a list; it is skipped",
            "user-data:3:14: error: data.wipe wants true or false, not a plain value; it is skipped",
            "user-data:4:18: error: conntrack.max wants a whole number from 0, not a plain value; it is skipped",
            "user-data:5:9: error: sysctl wants a mapping of keys to values, not a plain value; it is skipped",
        ]
    );
    assert!(machine.data.disk.is_some());
    assert!(machine.data.wipe.is_none(), "a doubtful `wipe` is none");
}

#[test]
fn hyphens_and_underscores_are_one_in_keys_but_not_in_sysctls() {
    let (machine, problems) = read(
        "ssh-authorized-keys: [ssh-rsa A]\nwrite-files: [{path: /a}]\nsysctl: {net.ipv4.conf.veth-a.forwarding: 1}\n\
         coreos: {units: [{name: a.service, drop-ins: [{name: b.conf}]}]}\n",
    );
    assert_eq!(problems, [""; 0]);
    assert_eq!(machine.ssh_authorized_keys.0.len(), 1);
    assert_eq!(machine.write_files.len(), 1);
    assert_eq!(machine.units[0].drop_ins.len(), 1);
    assert_eq!(machine.sysctl.0[0].key, "net.ipv4.conf.veth-a.forwarding");
}

#[test]
fn words_that_old_yaml_took_for_booleans_are_text_where_text_is_wanted() {
    let (machine, problems) = read("hostname: on\nusers: [{name: no, system: yes}, default]\n");
    assert_eq!(problems, [""; 0]);
    assert_eq!(hostname(&machine), Some("on"));
    assert_eq!(
        machine.users[0]
            .name
            .as_ref()
            .map(|name| name.value.as_str()),
        Some("no")
    );
    assert_eq!(
        machine.users[0].system.as_ref().map(|system| system.value),
        Some(true)
    );
    assert_eq!(
        machine.users[1]
            .name
            .as_ref()
            .map(|name| name.value.as_str()),
        Some("core")
    );
}

#[test]
fn permissions_are_octal_however_they_are_written() {
    for (written, mode) in [
        ("0644", 0o644),
        ("\"0644\"", 0o644),
        ("644", 0o644),
        ("0o600", 0o600),
        ("'4755'", 0o4755),
    ] {
        let (machine, problems) = read(&format!(
            "write_files: [{{path: /a, permissions: {written}}}]\n"
        ));
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            machine.write_files[0]
                .permissions
                .as_ref()
                .map(|p| p.value.0),
            Some(mode),
            "{written}"
        );
    }
    let (machine, problems) = load(vec![input(
        Kind::Toml,
        "orlop.toml",
        "[[write_files]]\npath = \"/a\"\npermissions = 0o640\n",
    )]);
    assert_eq!(lines(&problems), [""; 0]);
    assert_eq!(
        machine.write_files[0]
            .permissions
            .as_ref()
            .map(|p| p.value.0),
        Some(0o640)
    );
}

#[test]
fn a_file_with_wrong_permissions_is_not_written_for_all_to_read() {
    let (machine, problems) =
        read("write_files: [{path: /etc/secret, permissions: 384, content: x}]\n");
    assert_eq!(machine.write_files.len(), 0);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("decimal 384 is 0o600: write \"0600\""),
        "{}",
        problems[0]
    );
    assert!(
        problems[0].ends_with("the file is not written"),
        "{}",
        problems[0]
    );
}

#[test]
fn a_password_hash_is_in_no_message_and_not_shown() {
    let (machine, problems) = read(
        "users: [{name: a, passwd: $6$hidden}, {name: b, passwd: [$6$hidden]}, {name: c, passwd: \"$6$hidden:\"}]\n",
    );
    let shown = machine.shown();
    let texts = shown
        .iter()
        .map(|value| value.value.clone())
        .chain(problems)
        .chain([format!("{machine:?}")]);
    for text in texts {
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[test]
fn compressed_user_data_is_read_and_a_damaged_one_reported() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder
        .write_all(b"#cloud-config\nhostname: packed\n")
        .expect("memory");
    let packed = encoder.finish().expect("memory");
    let load_bytes = |text: &[u8]| {
        load(vec![Input {
            name: "user-data".to_owned(),
            kind: Kind::CloudConfig,
            text: text.to_vec(),
        }])
    };
    let (machine, problems) = load_bytes(&packed);
    assert_eq!(lines(&problems), [""; 0]);
    assert_eq!(hostname(&machine), Some("packed"));
    let (_, problems) = load_bytes(&packed[..packed.len() - 9]);
    assert_eq!(problems.len(), 1);
    let (_, problems) = load_bytes(b"#cloud-config\nhostname: \xff\n");
    assert_eq!(
        lines(&problems),
        ["user-data:2:11: error: not text in UTF-8; nothing of it is applied"]
    );
}

#[test]
fn other_kinds_of_user_data_are_named_and_an_empty_one_is_no_problem() {
    for (text, said) in [
        ("#!/bin/sh\n", "a script"),
        ("{\"ignition\": {}}", "Ignition"),
        ("hostname: a\n", "not a cloud-config"),
    ] {
        let (_, problems) = load(vec![input(Kind::CloudConfig, "user-data", text)]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains(said), "{}", problems[0]);
    }
    let (machine, problems) = load(vec![input(Kind::CloudConfig, "user-data", "\n")]);
    assert_eq!(lines(&problems), [""; 0]);
    assert_eq!(machine, Machine::default());
}

#[test]
fn aliases_and_merge_keys_are_followed() {
    let (machine, problems) = read(
        "conntrack: &a {max: 10, buckets: 20}\nsysctl:\n  <<: &s {a.b: 1, a.c: 2}\n  a.c: 3\nssh_authorized_keys: [&k ssh-rsa A, *k]\n",
    );
    assert_eq!(problems, [""; 0]);
    let sysctls: Vec<_> = machine
        .sysctl
        .0
        .iter()
        .map(|s| (s.key.as_str(), s.value.value.as_str()))
        .collect();
    assert_eq!(sysctls, [("a.b", "1"), ("a.c", "3")]);
    assert_eq!(machine.ssh_authorized_keys.0.len(), 1);
}

#[test]
fn the_compiled_machine_survives_its_json() {
    let (machine, _) = read(include_str!("../../../../configs/demo.yaml"));
    let json = serde_json::to_string(&machine).expect("json");
    let back: Machine = serde_json::from_str(&json).expect("a machine");
    assert_eq!(back, machine);
    assert_eq!(back.shown(), machine.shown(), "sources too");
}

#[test]
fn every_key_has_its_meaning_written_down() {
    let keys = Machine::keys();
    assert!(
        keys.iter()
            .any(|key| key.path == "network.interfaces.routes.metric")
    );
    for key in keys {
        assert!(
            key.summary.ends_with('.') && !key.wants.is_empty(),
            "{}",
            key.path
        );
    }
}

#[test]
fn what_makes_a_version_good_is_read_from_each_form() {
    let (machine, problems) = load(vec![
        user_data("update:\n  healthy: [network-online.target, web.service]\n  healthy_for: 10\n"),
        input(
            Kind::KernelCommandLine,
            "kernel command line",
            "orlop.update.boot_deadline=120",
        ),
    ]);
    assert_eq!(lines(&problems), [""; 0]);
    let update = &machine.update;
    let healthy: Vec<&str> = update.healthy.iter().map(|u| u.value.as_str()).collect();
    assert_eq!(healthy, ["network-online.target", "web.service"]);
    assert_eq!(update.healthy_for.as_ref().map(|s| s.value), Some(10));
    assert_eq!(update.boot_deadline.as_ref().map(|s| s.value), Some(120));
}
