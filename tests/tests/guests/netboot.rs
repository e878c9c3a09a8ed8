//! Machines that start over the network: in memory, from a configuration on a web server, and onto a disk.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Guest, Machine, Network, Start};
use orlop_qemu::http::server::{Content, Server};
use orlop_qemu::image::Project;
use orlop_qemu::seed;
use orlop_tests::Scenario;

/// What stands at the start of a disk that is not ours to overwrite: a boot record's signature and some text.
const FOREIGN: &[u8] = b"a logbook of many years";

/// QEMU's first network card.
const MAC: &str = "52:54:00:12:34:56";

/// The cloud-config: a container from an archive on the server, and a disk to live on.
fn configuration(machine: &Machine, server: &Server) -> String {
    format!(
        "#cloud-config
hostname: skiff
ssh_authorized_keys:
  - {key}
update:
  healthy_for: 3
install:
  disk: serial=orlop-system
  from: {payload}
coreos:
  units:
    - name: web.container
      content: |
        [Unit]
        Wants=network-online.target
        After=network-online.target

        [Container]
        Image=docker-archive:/run/web.tar
        PublishPort=80:80
        Volume=/var/lib/web:/data

        [Service]
        ExecStartPre=/bin/mkdir -p /var/lib/web
        ExecStartPre=/bin/busybox wget -q -O /run/web.tar {archive}

        [Install]
        WantedBy=multi-user.target
",
        key = machine.key.public.trim(),
        payload = server.url("/orlop.update"),
        archive = server.url("/web.tar"),
    )
}

/// Serves all that a start over the network asks for.
fn serve(machine: &Machine) -> Result<Server> {
    let server = Server::start()?;
    let products = &machine.products;
    for (path, file) in [
        ("/orlop.ipxe", &products.ipxe),
        ("/vmlinuz", &products.kernel),
        ("/initrd", &products.initrd),
        ("/orlop.update", &products.payload),
    ] {
        server.serve(path, Content::File(file.clone()));
    }
    let archive = seed::web_archive(&Project::here())?;
    server.serve("/web.tar", Content::File(archive));
    let script = format!(
        "#!ipxe\nset config {}\nset words orlop.sysctl.net.core.somaxconn=4097\nchain orlop.ipxe\n",
        server.url("/${mac}.yaml")
    );
    server.serve("/start.ipxe", Content::Bytes(script.into_bytes()));
    let user_data = configuration(machine, &server);
    server.serve(
        &format!("/{MAC}.yaml"),
        Content::Bytes(user_data.into_bytes()),
    );
    Ok(server)
}

/// A machine with nothing but a network card, whose network has iPXE load the server's script.
fn bare_metal(machine: &mut Machine) -> Result<Server> {
    let server = serve(machine)?;
    machine.start = Start::Firmware;
    machine.memory_mib = 384;
    machine.data_bytes = None;
    machine.network = Network::Open;
    machine.boot_file = Some(server.url("/start.ipxe"));
    std::fs::remove_file(machine.directory.join("cidata.img")).context("remove the seed")?;
    Ok(server)
}

fn serves_its_page(scenario: &mut Scenario) {
    scenario.need("the container of the configuration runs", |guest| {
        let page = guest.wait_for_page("/")?;
        ensure!(page.contains("starts: "), "{page}");
        Ok(())
    });
    scenario.need("the operator gets in", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    scenario.command("it has its name", "hostname", |name| name.trim() == "skiff");
}

#[test]
fn a_netbooted_machine_runs_in_memory_and_installs_itself() {
    let mut server = None;
    let mut skiff = Scenario::start("test-netboot", "#cloud-config\n", |machine| {
        server = Some(bare_metal(machine)?);
        machine.add_blank_system_disk(1 << 30)?;
        let disk = File::options().write(true).open(machine.system_disk())?;
        disk.write_all_at(FOREIGN, 0)?;
        disk.write_all_at(&[0x55, 0xaa], 510)?;
        Ok(())
    });
    let server = server.expect("a server");
    serves_its_page(&mut skiff);
    skiff.command(
        "it is in memory, and 384 MiB are enough",
        "grep -E ' (/|/var) ' /proc/mounts",
        |text| text.contains("/dev/loop0 / erofs") && text.contains("var /var tmpfs"),
    );
    skiff.command(
        "iPXE's words are on the command line",
        "cat /proc/sys/net/core/somaxconn",
        |text| text.trim() == "4097",
    );
    skiff.check("a disk with somebody else's data is refused", |guest| {
        let line = guest.wait_for_console("`wipe` lets", 0, BOOT_PATIENCE)?;
        ensure!(line.contains("/dev/vda holds"), "{line}");
        Ok(())
    });
    let disk = skiff.machine.system_disk();
    skiff.check("and stays as it is", |_| {
        let mut start = vec![0; FOREIGN.len()];
        File::open(&disk)?.read_exact_at(&mut start, 0)?;
        ensure!(start == FOREIGN, "{start:?}");
        Ok(())
    });
    skiff.need("without them it installs itself and reboots into the disk", |guest| {
        crate::reset::restart(
            guest,
            "sudo sh -c 'dd if=/dev/zero of=/dev/vda bs=1M count=1; systemctl start orlop-install.service'",
        )
    });
    serves_its_page(&mut skiff);
    skiff.command_becomes(
        "the version on the disk is good",
        "sudo orlop slots --json",
        |text| text.contains("\"entry\":\"orlop_0.1.0.efi\""),
    );
    skiff.command(
        "the root is the verified device, /var what is left of the disk",
        "grep -E ' (/|/var) ' /proc/mounts",
        |text| text.contains("/dev/dm-0 / erofs ro") && text.contains("/dev/vda6 /var ext4"),
    );
    skiff.check(
        "the configuration and the payload were fetched once",
        |_| {
            let requests = server.requests();
            for path in [format!("/{MAC}.yaml"), "/orlop.update".to_owned()] {
                let count = requests.iter().filter(|asked| **asked == path).count();
                ensure!(count == 1, "{path}: {requests:?}");
            }
            Ok(())
        },
    );
    skiff.power_off();
    skiff.finish();
}

#[test]
#[ignore = "torture"]
fn torture_the_firmware_of_old_pcs_boots_over_the_network_too() {
    let mut skiff = Scenario::start("test-netboot-bios", "#cloud-config\n", |machine| {
        bare_metal(machine)?;
        machine.start = Start::Bios;
        Ok(())
    });
    serves_its_page(&mut skiff);
    skiff.power_off();
    skiff.finish();
}

#[test]
fn a_configuration_that_cannot_be_fetched_is_told_with_its_url() {
    let mut lost = None;
    let mut adrift = Scenario::start("test-no-config", "#cloud-config\n", |machine| {
        let server = Server::start()?;
        machine.start = Start::Initramfs(machine.products.initrd.clone());
        machine.data_bytes = None;
        machine.network = Network::Open;
        machine.memory_mib = 384;
        std::fs::remove_file(machine.directory.join("cidata.img")).context("remove the seed")?;
        let words = [
            "-uuid",
            "5B1C0F6E-0000-4000-8000-0123456789AB",
            "-smbios",
            "type=1,serial=Hull 7",
        ];
        machine.more.extend(words.map(str::to_owned));
        // At this level a person at the console sees errors alone.
        machine.command_line = machine.command_line.replace("loglevel=7", "loglevel=4");
        machine.command_line.push_str(&format!(
            " orlop.config={} orlop.shell=ttyS0",
            server.url("/${mac}/${uuid}/${serial}")
        ));
        lost = Some(server);
        Ok(())
    });
    let server = lost.expect("a server");
    let path = format!("/{MAC}/5b1c0f6e-0000-4000-8000-0123456789ab/Hull%207");
    adrift.need("the console names URL and reason", |guest: &mut Guest| {
        let line = guest.wait_for_console("no configuration from", 0, BOOT_PATIENCE)?;
        ensure!(
            line.contains(&server.url(&path)) && line.contains("404"),
            "{line}"
        );
        Ok(())
    });
    adrift.check("it was asked for once", |_| {
        ensure!(server.requests() == [path], "{:?}", server.requests());
        Ok(())
    });
    adrift.check("the machine comes up all the same", |guest| {
        let mut shell = crate::reset::prompt(guest, 0)?;
        let until = std::time::Instant::now() + Duration::from_secs(120);
        let said = shell.run("systemctl is-active network-online.target", until)?;
        ensure!(said.contains("active"), "{said}");
        shell.leave()
    });
    adrift.cut_power();
    adrift.finish();
}
