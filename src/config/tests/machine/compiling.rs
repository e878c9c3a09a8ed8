//! Values to files, links and sysctls.

use orlop_config::{Owner, compile};

use crate::{base, content, lines, link, plan, read};

#[test]
fn keys_go_to_core_with_the_owner_and_modes_that_an_ssh_server_demands() {
    let plan = plan(
        "ssh_authorized_keys: [ssh-rsa A a]\nusers: [{name: core, ssh_authorized_keys: [ssh-rsa B b, ssh-rsa A a]}]\n",
    );
    let path = "/home/core/.ssh/authorized_keys";
    assert_eq!(content(&plan, path), "ssh-rsa A a\nssh-rsa B b\n");
    let file = plan
        .files
        .iter()
        .find(|file| file.path == path)
        .expect("the file");
    let core = Owner { uid: 500, gid: 500 };
    assert_eq!((file.mode, file.owner), (0o600, core));
    let directory = plan
        .directories
        .iter()
        .find(|d| d.path == "/home/core/.ssh")
        .expect("the directory");
    assert_eq!((directory.mode, directory.owner), (0o700, core));
    assert!(
        plan.files.iter().all(|file| file.path != "/etc/passwd"),
        "the image's accounts are as they were"
    );
}

#[test]
fn users_are_merged_into_the_accounts_of_the_image() {
    let plan = plan(
        "users:\n  - {name: ada, gecos: Ada, groups: 'sudo, docker', passwd: $6$x}\n  - {name: svc, system: true, no_create_home: true, shell: /bin/false}\n\
         \x20 - {name: core, shell: /bin/other, passwd: $6$y}\nwrite_files: [{path: /home/ada/x, owner: 'ada:sudo'}]\n",
    );
    let passwd = content(&plan, "/etc/passwd");
    assert!(
        passwd.contains("\nada:x:1000:1000:Ada:/home/ada:/bin/bash\n"),
        "{passwd}"
    );
    assert!(
        passwd.contains("\nsvc:x:202:202::/home/svc:/bin/false\n"),
        "{passwd}"
    );
    assert!(
        passwd.contains("core:x:500:500:Operator:/home/core:/bin/bash\n"),
        "one that the image has stays: {passwd}"
    );
    let group = content(&plan, "/etc/group");
    assert!(group.contains("sudo:x:27:core,ada\n"), "{group}");
    assert!(
        group.contains(":ada\n") && group.contains("docker:x:"),
        "{group}"
    );
    let shadow = content(&plan, "/etc/shadow");
    assert!(
        shadow.contains("ada:$6$x:") && shadow.contains("core:$6$y:") && shadow.contains("svc:*:"),
        "{shadow}"
    );
    let shadow = plan
        .files
        .iter()
        .find(|file| file.path == "/etc/shadow")
        .expect("the file");
    assert_eq!(shadow.mode, 0o600);
    let file = plan
        .files
        .iter()
        .find(|file| file.path == "/home/ada/x")
        .expect("the file");
    assert_eq!(file.owner, Owner { uid: 1000, gid: 27 });
}

#[test]
fn every_encoding_of_a_file_gives_its_bytes() {
    let packed = "H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==";
    for (content, encoding) in [
        ("hello", "text/plain"),
        ("aGVsbG8=", "b64"),
        ("aGVsbG8=", "base64"),
        (packed, "gz+base64"),
        (packed, "gzip+b64"),
        ("!!binary H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==", "gzip"),
        ("!!binary aGVsbG8=", "''"),
    ] {
        let plan = plan(&format!(
            "write_files: [{{path: /etc/x, encoding: {encoding}, content: {content}}}]\n"
        ));
        assert_eq!(crate::content(&plan, "/etc/x"), "hello", "{encoding}");
    }
}

#[test]
fn a_file_outside_of_what_can_be_written_is_refused_with_its_line() {
    let (machine, _) =
        read("write_files:\n  - path: /usr/bin/x\n  - path: /etc/../usr/x\n  - path: /etc/fine\n");
    let plan = compile(&machine, &base());
    assert_eq!(
        lines(&plan.problems),
        [
            "user-data:3:11: error: \"/usr/bin/x\" is not written: the root image is read-only",
            "user-data:4:11: error: \"/etc/../usr/x\" is not written: the path holds `..`",
        ]
    );
    assert!(plan.files.iter().any(|file| file.path == "/etc/fine"));
}

#[test]
fn conntrack_settings_load_the_module_and_size_its_table() {
    let set =
        plan("conntrack: {max: 262144, generic_timeout: 120, tcp_timeout_established: 7200}\n");
    assert_eq!(set.modules, ["nf_conntrack"]);
    assert_eq!(
        set.conntrack_buckets.map(|buckets| buckets.value),
        Some(65536)
    );
    let sysctls: Vec<_> = set
        .sysctls
        .iter()
        .map(|s| (s.path.as_str(), s.value.as_str()))
        .collect();
    assert_eq!(
        sysctls,
        [
            ("/proc/sys/net/netfilter/nf_conntrack_max", "262144"),
            (
                "/proc/sys/net/netfilter/nf_conntrack_generic_timeout",
                "120"
            ),
            (
                "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
                "7200"
            ),
        ]
    );
    let given = plan("conntrack: {max: 262144, buckets: 1024}\n");
    assert_eq!(
        given.conntrack_buckets.map(|buckets| buckets.value),
        Some(1024)
    );
    let plain = plan("sysctl: {net.netfilter.nf_conntrack_max: 1000}\n");
    assert_eq!(plain.modules, ["nf_conntrack"]);
    assert_eq!(
        plain.conntrack_buckets.map(|buckets| buckets.value),
        Some(250)
    );
    assert_eq!(plan("sysctl: {vm.swappiness: 1}\n").modules, [""; 0]);
}

#[test]
fn a_unit_is_written_and_enabled_where_its_install_section_says() {
    let plan = plan(
        "coreos:\n  units:\n    - name: web.service\n      enable: true\n      drop_ins: [{name: 10-x.conf, content: '[Service]'}]\n\
         \x20     content: |\n        [Service]\n        ExecStart=/bin/web\n        [Install]\n        WantedBy=multi-user.target other.target\n        Alias=www.service\n",
    );
    let file = "/etc/systemd/system/web.service";
    assert!(content(&plan, file).starts_with("[Service]"));
    assert_eq!(
        content(&plan, "/etc/systemd/system/web.service.d/10-x.conf"),
        "[Service]"
    );
    for path in [
        "/etc/systemd/system/multi-user.target.wants/web.service",
        "/etc/systemd/system/other.target.wants/web.service",
        "/etc/systemd/system/www.service",
    ] {
        assert_eq!(link(&plan, path), Some(file), "{path}");
    }
}

#[test]
fn a_unit_that_is_not_enabled_is_only_written() {
    let plan = plan(
        "units: [{name: web.service, content: \"[Install]\\nWantedBy=multi-user.target\\n\"}]\n",
    );
    assert_eq!(plan.links, []);
}

#[test]
fn a_start_command_holds_for_this_boot_alone() {
    let plan = plan(
        "units: [{name: a.service, command: start, content: x}, {name: late.service, command: restart}, {name: late@7.service, command: start}]\n",
    );
    let wants = "/run/systemd/system/multi-user.target.wants";
    assert_eq!(
        link(&plan, &format!("{wants}/a.service")),
        Some("/etc/systemd/system/a.service")
    );
    assert_eq!(
        link(&plan, &format!("{wants}/late.service")),
        Some("/usr/lib/orlop/units/late.service")
    );
    assert_eq!(
        link(&plan, &format!("{wants}/late@7.service")),
        Some("/usr/lib/orlop/units/late@.service")
    );
}

#[test]
fn a_unit_of_the_image_is_enabled_by_its_own_install_section_and_a_missing_one_reported() {
    let (machine, _) =
        read("units: [{name: late.service, enable: true}, {name: none.service, enable: true}]\n");
    let plan = compile(&machine, &base());
    assert_eq!(
        link(
            &plan,
            "/etc/systemd/system/multi-user.target.wants/late.service"
        ),
        Some("/usr/lib/orlop/units/late.service")
    );
    assert_eq!(
        lines(&plan.problems),
        ["user-data:2:74: error: \"none.service\" can not be enabled: the image has no such unit"]
    );
}

#[test]
fn a_mask_wins_over_everything_else() {
    let plan = plan(
        "units: [{name: a.service, mask: true, enable: true, command: start, content: x}, {name: b.service, mask: true, runtime: true}]\n",
    );
    assert_eq!(
        link(&plan, "/etc/systemd/system/a.service"),
        Some("/dev/null")
    );
    assert_eq!(
        link(&plan, "/run/systemd/system/b.service"),
        Some("/dev/null")
    );
    assert_eq!(plan.links.len(), 2);
    assert!(
        plan.files
            .iter()
            .all(|file| !file.path.contains("a.service"))
    );
}

#[test]
fn a_quadlet_is_enabled_by_its_install_section_alone() {
    let plan = plan(
        "units: [{name: web.container, content: \"[Container]\\nImage=x\\n[Install]\\nWantedBy=multi-user.target\\n\", drop_ins: [{name: a.conf, content: x}]}]\n",
    );
    let file = "/etc/containers/systemd/web.container";
    assert!(content(&plan, file).starts_with("[Container]"));
    assert_eq!(
        link(
            &plan,
            "/run/systemd/system/multi-user.target.wants/web.service"
        ),
        Some(file)
    );
    assert_eq!(
        content(&plan, "/etc/containers/systemd/web.container.d/a.conf"),
        "x"
    );
}

#[test]
fn a_runtime_unit_goes_to_run() {
    let plan = plan(
        "units: [{name: a.service, runtime: true, content: x}, {name: b.container, runtime: true, content: y}]\n",
    );
    assert_eq!(content(&plan, "/run/systemd/system/a.service"), "x");
    assert_eq!(content(&plan, "/run/containers/systemd/b.container"), "y");
}

#[test]
fn the_hostname_is_in_the_files_that_programs_read() {
    let plan = plan("hostname: web1.example.org\n");
    assert_eq!(content(&plan, "/etc/hostname"), "web1.example.org\n");
    assert!(content(&plan, "/etc/hosts").contains("127.0.1.1 web1.example.org web1\n"));
    assert!(content(&plan, "/etc/hosts").starts_with("127.0.0.1 localhost\n"));
}

#[test]
fn the_store_is_wanted_or_masked_as_the_configuration_says() {
    let name = "orlop-store.service";
    let on = plan("store: {enabled: true}\n");
    assert!(
        link(
            &on,
            &format!("/run/systemd/system/multi-user.target.wants/{name}")
        )
        .is_some()
    );
    let off = plan("store: {enabled: false}\n");
    assert_eq!(
        link(&off, &format!("/run/systemd/system/{name}")),
        Some("/dev/null")
    );
}

#[test]
fn fleets_settings_are_the_agents_environment() {
    let plan = plan(
        "coreos:\n  fleet:\n    public-ip: 10.0.0.7\n    metadata: region=eu,disk=ssd\n    disable-engine: true\nfleet:\n  enabled: true\n",
    );
    assert_eq!(
        content(
            &plan,
            "/run/systemd/system/orlop-agent.service.d/20-cloudinit.conf"
        ),
        "[Service]\nEnvironment=\"FLEET_METADATA=region=eu,disk=ssd\"\nEnvironment=\"FLEET_PUBLIC_IP=10.0.0.7\"\n\
         Environment=\"FLEET_DISABLE_ENGINE=true\"\n"
    );
    let wanted = "/run/systemd/system/multi-user.target.wants/orlop-agent.service";
    assert!(link(&plan, wanted).is_some());
}

#[test]
fn the_agent_of_a_machine_whose_store_speaks_tls_alone_has_its_files() {
    let path = "/run/systemd/system/orlop-agent.service.d/20-cloudinit.conf";
    let files = "trusted_ca_file: /ca, cert_file: /crt, key_file: /key";
    let text = |urls: &str, fleet: &str| {
        plan(&format!(
            "store: {{listen_client_urls: [{urls}], {files}}}\nfleet: {{enabled: true{fleet}}}\n"
        ))
    };
    let all = "Environment=\"FLEET_ETCD_SERVERS=https://127.0.0.1:2379\"\nEnvironment=\"FLEET_ETCD_CAFILE=/ca\"\n\
               Environment=\"FLEET_ETCD_CERTFILE=/crt\"\nEnvironment=\"FLEET_ETCD_KEYFILE=/key\"\n";
    let tls_alone = text("'https://0.0.0.0:2379'", "");
    assert_eq!(content(&tls_alone, path), format!("[Service]\n{all}"));
    let both = text("'https://0.0.0.0:2379', 'http://127.0.0.1:2379'", "");
    assert!(both.files.iter().all(|file| file.path != path));
    let told = text(
        "'https://0.0.0.0:2379'",
        ", etcd_servers: 'https://10.0.0.1:2379'",
    );
    assert_eq!(
        content(&told, path),
        "[Service]\nEnvironment=\"FLEET_ETCD_SERVERS=https://10.0.0.1:2379\"\n"
    );
}

#[test]
fn metadata_that_could_never_match_is_told() {
    let text = plan_and_problems("coreos: {fleet: {metadata: 'a=b=c', agent_ttl: 60s}}\n");
    assert!(text.contains("is not KEY=VALUE"), "{text}");
    assert!(text.contains("LostAfter="), "{text}");
}

#[test]
fn the_journal_is_forwarded_where_the_configuration_says() {
    let wanted = "/run/systemd/system/multi-user.target.wants/orlop-forward.service";
    assert!(link(&plan("journal: {max_size_mib: 64}\n"), wanted).is_none());
    let text = "journal:\n  forward:\n    - {to: 'udp://10.0.0.1', priority: warning}\n";
    assert!(link(&plan(text), wanted).is_some());
    let text = "journal: {forward: [{to: 'tls://logs', cert_file: /c, key_file: /k}]}\n";
    assert!(link(&plan(text), wanted).is_some());
    for (entry, lacking) in [
        ("to: 'tls://logs', cert_file: /c", "no usable key_file"),
        ("to: 'https://logs', key_file: /k", "no usable cert_file"),
        ("to: 'tcp://logs', trusted_ca_file: /a", "need tls://"),
    ] {
        let told = plan_and_problems(&format!("journal: {{forward: [{{{entry}}}]}}\n"));
        assert!(told.contains(lacking), "{told}");
    }
    let told = plan_and_problems("journal: {forward: [{priority: loud}]}\n");
    assert!(
        told.contains("none of emerg") && told.contains("to"),
        "{told}"
    );
}

#[test]
fn an_installation_that_is_asked_for_is_a_unit_of_the_start() {
    let wanted = "/run/systemd/system/multi-user.target.wants/orlop-install.service";
    assert!(link(&plan("install: {disk: 'size=largest'}\n"), wanted).is_some());
    assert!(link(&plan("install: {wipe: true}\n"), wanted).is_none());
}

#[test]
fn disks_are_named_by_path_serial_model_or_size() {
    let problems = |name: &str| plan_and_problems(&format!("install: {{disk: '{name}'}}\n"));
    for name in [
        "/dev/vda",
        "serial=A1",
        "model=Samsung*",
        "size=20GiB",
        "size=500GB",
        "size=smallest",
    ] {
        assert_eq!(problems(name), "", "{name}");
    }
    for name in [
        "vda",
        "size=",
        "size=big",
        "size=0",
        "size=1.5G",
        "uuid=1",
        "/dev/../x",
    ] {
        assert!(
            problems(name).contains("serial=…, model=… and size=…"),
            "{name}: {}",
            problems(name)
        );
    }
}

fn plan_and_problems(text: &str) -> String {
    let input = orlop_config::Input {
        name: "user-data".to_owned(),
        kind: orlop_config::Kind::CloudConfig,
        text: format!("#cloud-config\n{text}").into_bytes(),
    };
    let (_, problems) = orlop_config::load(vec![input]);
    problems.iter().map(|problem| problem.to_string()).collect()
}

#[test]
fn the_stores_keys_become_its_units_environment() {
    let plan = plan(
        "hostname: m1\nstore: {enabled: true, token: \"0123456789abcdef $x\", join: ['http://10.0.0.1', 'http://10.0.0.2']}\n",
    );
    assert_eq!(plan.problems, []);
    assert_eq!(
        content(&plan, "/run/orlop/store.env"),
        "ETCD_JOIN=\"http://10.0.0.1,http://10.0.0.2\"\nETCD_TOKEN=\"0123456789abcdef \\$x\"\nETCD_NAME=\"m1\"\n"
    );
    let file = plan.files.iter().find(|f| f.path == "/run/orlop/store.env");
    assert_eq!(file.map(|f| f.mode), Some(0o600), "it holds the token");
}

#[test]
fn etcd2_of_coreos_is_the_store() {
    let plan = plan(
        "#cloud-config\ncoreos:\n  etcd2:\n    name: infra0\n    advertise-client-urls: http://10.0.0.1:2379\n    \
         listen-client-urls: http://0.0.0.0:2379,http://0.0.0.0:4001\n    initial-cluster: infra0=http://10.0.0.1:2380\n",
    );
    assert_eq!(plan.problems, []);
    assert_eq!(
        content(&plan, "/run/orlop/store.env"),
        "ETCD_NAME=\"infra0\"\nETCD_LISTEN_CLIENT_URLS=\"http://0.0.0.0:2379,http://0.0.0.0:4001\"\n\
         ETCD_ADVERTISE_CLIENT_URLS=\"http://10.0.0.1:2379\"\nETCD_INITIAL_CLUSTER=\"infra0=http://10.0.0.1:2380\"\n"
    );
    let meeting = self::plan(
        "#cloud-config\ncoreos:\n  etcd2:\n    discovery: http://10.0.0.9:2379/v2/keys/discovery/t\n    \
         discovery-fallback: exit\n    initial-advertise-peer-urls: http://$private_ipv4:2380\n",
    );
    assert_eq!(meeting.problems, []);
    assert_eq!(
        content(&meeting, "/run/orlop/store.env"),
        "ETCD_DISCOVERY=\"http://10.0.0.9:2379/v2/keys/discovery/t\"\nETCD_DISCOVERY_FALLBACK=\"exit\"\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS=\"http://\\$private_ipv4:2380\"\n"
    );
}
