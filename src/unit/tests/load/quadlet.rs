//! `.container` files.

use super::*;

#[test]
fn a_container_file_becomes_a_service() {
    let store = MemoryStore::new().file(
        "/etc/containers/systemd/web.container",
        "[Unit]\nDescription=Web\nAfter=db.container\n\
         [Container]\nImage=docker-archive:/run/orlop/cidata/web.tar\nExec=/bin/httpd -f -p 80 \"two words\"\nPublishPort=80:80\n\
         PublishPort=443:443/tcp\nVolume=/var/www:/www:ro\nVolume=./conf:/conf\nEnvironment=A=1 \"B=two words\"\nEnvironmentFile=web.env\n\
         User=100\nGroup=101\nMemory=64m\nPidsLimit=50\nReadOnly=yes\nNoNewPrivileges=true\nRunInit=no\nAddCapability=NET_ADMIN SYS_TIME\n\
         StopSignal=SIGINT\nStopTimeout=5\nPodmanArgs=--oom-score-adj 5\n\
         [Service]\nRestart=always\n\
         [Install]\nWantedBy=multi-user.target default.target\n",
    );
    let unit = good(load(&store, "web.service"));
    assert!(
        has(&unit, Relation::After, "db.service")
            && has(&unit, Relation::After, "network-online.target")
    );
    assert_eq!(
        unit.requires_mounts_for,
        ["/var/www", "/etc/containers/systemd/conf"]
    );
    let service = unit.service().unwrap();
    assert_eq!(
        (service.service_type, service.kill_mode),
        (ServiceType::Container, KillMode::Mixed)
    );
    assert_eq!(
        (service.kill_signal, service.timeout_stop),
        (Signal::INT, Some(Duration::from_secs(5)))
    );
    assert_eq!(
        service.exec_start[0].expand(&[][..]),
        [
            "/usr/bin/orlop",
            "container",
            "run",
            "--name=systemd-web",
            "--cap-add=NET_ADMIN",
            "--cap-add=SYS_TIME",
            "--env=A=1",
            "--env=B=two words",
            "--env-file=/etc/containers/systemd/web.env",
            "--memory=64m",
            "--security-opt=no-new-privileges",
            "--pids-limit=50",
            "--publish=80:80",
            "--publish=443:443/tcp",
            "--read-only",
            "--stop-signal=SIGINT",
            "--stop-timeout=5",
            "--volume=/var/www:/www:ro",
            "--volume=/etc/containers/systemd/conf:/conf",
            "--user=100:101",
            "--oom-score-adj",
            "5",
            "docker-archive:/run/orlop/cidata/web.tar",
            "/bin/httpd",
            "-f",
            "-p",
            "80",
            "two words",
        ]
    );
    let cleanup = &service.exec_stop_post[0];
    assert!(cleanup.flags.ignore_failure);
    assert_eq!(cleanup.words, ["container", "cleanup", "systemd-web"]);
    assert!(has(
        &good(load(&store, "multi-user.target")),
        Relation::Wants,
        "web.service"
    ));
}

#[test]
fn drop_ins_of_the_container_file_and_of_its_service_both_count() {
    let store = MemoryStore::new()
        .file(
            "/etc/containers/systemd/a.container",
            "[Container]\nImage=x\nPublishPort=1:1\n",
        )
        .file(
            "/etc/containers/systemd/a.container.d/p.conf",
            "[Container]\nPublishPort=\nPublishPort=2:2\n[Install]\nWantedBy=x.target\n",
        )
        .file(
            "/etc/systemd/system/a.service.d/q.conf",
            "[Service]\nRestart=on-failure\nKillMode=process\n[Container]\nImage=no\n",
        )
        .file("/etc/systemd/system/x.target", "[Unit]\n");
    let loaded = load(&store, "a.service");
    assert_eq!(
        messages(&loaded),
        [
            "/etc/systemd/system/a.service.d/q.conf:5:1: warning: section [Container] does not belong in a service unit, ignored"
        ]
    );
    let unit = loaded.unit.unwrap();
    let service = unit.service().unwrap();
    assert!(
        service.exec_start[0]
            .words
            .contains(&"--publish=2:2".to_owned())
    );
    assert!(
        !service.exec_start[0]
            .words
            .contains(&"--publish=1:1".to_owned())
    );
    assert_eq!(
        (service.restart, service.kill_mode),
        (Restart::OnFailure, KillMode::Process)
    );
    assert!(has(
        &good(load(&store, "x.target")),
        Relation::Wants,
        "a.service"
    ));
}

#[test]
fn container_keys_that_cannot_be_honoured_are_named() {
    let container = |text: &str| {
        let store = MemoryStore::new().file(
            "/etc/containers/systemd/a.container",
            &format!("[Container]\n{text}"),
        );
        load(&store, "a.service")
    };
    for (text, message) in [
        (
            "Exec=x\n",
            "/etc/containers/systemd/a.container: error: no Image= in section [Container]",
        ),
        (
            "Image=x\nPod=a.pod\n",
            "/etc/containers/systemd/a.container:3:1: error: Pod= is not supported (pods), so the unit is not loaded",
        ),
        (
            "Image=x\nVolume=d.volume:/d\n",
            "/etc/containers/systemd/a.container:3:8: error: Volume=: d.volume: .volume files are not supported, name the volume or a path",
        ),
        (
            "Image=x\nNetwork=n.network\n",
            "/etc/containers/systemd/a.container:3:9: error: Network=: n.network: networks made by other units are not supported",
        ),
    ] {
        let loaded = container(text);
        assert!(loaded.unit.is_none(), "{text}");
        assert_eq!(messages(&loaded), [message]);
    }
    let loaded = container("Image=x\nHealthCmd=true\nNoSuch=1\n");
    assert!(loaded.unit.is_some());
    assert_eq!(
        messages(&loaded),
        [
            "/etc/containers/systemd/a.container:3:1: warning: HealthCmd= is not supported: the container is not probed",
            "/etc/containers/systemd/a.container:4:1: warning: unknown key NoSuch in section [Container], ignored",
        ]
    );
}

#[test]
fn a_notifying_container_is_a_notify_service() {
    let store = MemoryStore::new()
        .file("/etc/containers/systemd/n@.container", "[Container]\nImage=x\nNotify=yes\nContainerName=n-%i\n[Install]\nDefaultInstance=1\nWantedBy=multi-user.target\n");
    let service = service(load(&store, "n@2.service"));
    assert_eq!(
        (service.service_type, service.notify_access),
        (ServiceType::Notify, orlop_unit::NotifyAccess::All)
    );
    assert_eq!(service.container.unwrap().name, "n-2");
    assert!(has(
        &good(load(&store, "multi-user.target")),
        Relation::Wants,
        "n@1.service"
    ));
}
