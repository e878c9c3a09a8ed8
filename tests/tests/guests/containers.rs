//! Containers: from plain units with `docker run`, from every form of an image, and what holds them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use orlop_image::build::{Layer, Recipe};
use orlop_image::decompress::Compression;
use orlop_qemu::guest::Machine;
use orlop_qemu::image::Project;
use orlop_qemu::seed::{self, Seed};
use orlop_tests::{Scenario, number_after};

const USER_DATA: &str = include_str!("containers.yaml");

/// What scripts in the guest begin with. The first process of a container is the one whose innermost number is 1
/// (proc_pid_status(5), NSpid), in a deeper namespace than ours. Others of them may end while they are looked at.
const PRELUDE: &str = "\
first_of() {
    for p in $(cat /sys/fs/cgroup/system.slice/$1.service/cgroup.procs); do
        [ \"$(awk '/^NSpid:/ { print NF, $NF }' /proc/$p/status 2>/dev/null)\" = '3 1' ] && echo $p
    done
}
";

/// A command line that runs `script` as root.
fn as_root(script: &str) -> String {
    format!("sudo sh -s 2>&1 <<'END'\n{PRELUDE}{script}\nexit 0\nEND")
}

/// Runs `script` as root; it prints just these lines.
fn prints(scenario: &mut Scenario, sentence: &str, script: &str, lines: &[&str]) {
    scenario.prints(sentence, &as_root(script), lines);
}

#[test]
fn containers_are_started_held_and_cleaned_up() {
    let mut hold = Scenario::start("test-containers", USER_DATA, |machine| {
        machine.write_seed_with(&Seed {
            user_data: USER_DATA.as_bytes().to_vec(),
            keys: vec![machine.key.public.clone()],
            files: images(machine)?,
        })
    });
    hold.need("its page is reached from outside", |guest| {
        let page = guest.wait_for_page("/")?;
        ensure!(number_after(&page, "starts: ")? == 1, "{page}");
        Ok(())
    });
    hold.need("core gets in with its key", |guest| {
        guest.wait_for_ssh().map(|_| ())
    });
    the_unit_is_the_container(&mut hold);
    it_is_held(&mut hold);
    limits_are_real(&mut hold);
    every_form_of_an_image_starts(&mut hold);
    nothing_is_left(&mut hold);
    hold.power_off();
    hold.finish();
}

fn the_unit_is_the_container(hold: &mut Scenario) {
    prints(
        hold,
        "its page is reached from the machine itself, by the loopback and by its own address",
        "for address in 127.0.0.1 10.0.2.15; do
             /bin/busybox wget -q -O- http://$address/ | grep -o 'starts: 1'
         done",
        &["starts: 1", "starts: 1"],
    );
    prints(
        hold,
        "its first process is the unit's main process and a child of PID 1, and nothing of ours stays",
        "first=$(first_of web)
         systemctl show web.service | grep -cx MainPID=$first
         awk '/^PPid:/ { print $2 }' /proc/$first/status
         for p in $(cat /sys/fs/cgroup/system.slice/web.service/cgroup.procs); do readlink /proc/$p/exe; done | sort -u
         ps | grep -c '[d]ocker run'",
        &["1", "1", "/bin/busybox", "0"],
    );
    prints(
        hold,
        "the environment is what -e says and the image has",
        "tr '\\0' '\\n' </proc/$(first_of web)/environ | grep -E '^(GREETING|PATH|HOSTNAME|INVOCATION_ID)=' | sort | sed 's/HOSTNAME=.*/HOSTNAME=/'",
        &["GREETING=two words", "HOSTNAME=", "PATH=/bin"],
    );
    prints(
        hold,
        "the volume is the machine's directory",
        "cat /var/lib/web/starts; docker exec web cat /data/starts; ls /var/lib/web",
        &["1", "1", "starts", "www"],
    );
    hold.command_becomes(
        "its output is the unit's log, by either way to ask",
        &as_root("journalctl --no-pager -o cat -u web.service | grep serving; docker logs web | grep serving"),
        |text| text.lines().eq(["start 1, serving on port 80"; 2]),
    );
    prints(
        hold,
        "a restart is a new container on the same volume",
        "systemctl restart web.service; systemctl is-active web.service
         until /bin/busybox wget -q -O- http://127.0.0.1/ 2>/dev/null | grep -o 'starts: 2'; do sleep 0.2; done
         docker ps -a | grep -c web",
        &["active", "starts: 2", "1"],
    );
}

fn it_is_held(hold: &mut Scenario) {
    prints(
        hold,
        "capabilities are Docker's, privileges cannot be gained, a seccomp filter is in place",
        "awk '/^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):/ { print $1, $2 }' /proc/$(first_of web)/status",
        &[
            "CapInh: 0000000000000000",
            "CapPrm: 00000000a80425fb",
            "CapEff: 00000000a80425fb",
            "CapBnd: 00000000a80425fb",
            "CapAmb: 0000000000000000",
            "NoNewPrivs: 1",
            "Seccomp: 2",
        ],
    );
    prints(
        hold,
        "its namespaces are its own, the user namespace aside",
        "first=$(first_of web)
         for n in mnt pid net ipc uts cgroup user; do
             [ $(readlink /proc/$first/ns/$n) = $(readlink /proc/1/ns/$n) ] && echo shares $n
         done
         docker exec web ps | grep -c httpd
         docker exec web hostname | grep -c '^hold$'
         docker exec web cat /proc/self/cgroup",
        &["shares user", "1", "0", "0::/"],
    );
    hold.command(
        "what is dangerous in /proc and /sys is hidden or cannot be written",
        &as_root(
            "docker exec web sh -c 'echo 1 >/proc/sys/kernel/sysrq'
             docker exec web sh -c 'echo b >/proc/sysrq-trigger'
             docker exec web sh -c 'echo 1 >/sys/kernel/profiling'
             docker exec web busybox wc -c /proc/kcore /proc/keys /proc/timer_list
             docker exec web ls /sys/firmware /proc/scsi",
        ),
        |text| {
            text.matches("Read-only file system").count() == 3
                && text.contains("0 /proc/kcore")
                && text.contains("0 /proc/keys")
                && text.contains("0 /proc/timer_list")
                && !text.contains("efi")
        },
    );
    hold.command(
        "seccomp refuses a namespace of users, and devices are few",
        &as_root(
            "docker exec web busybox unshare -U true; echo $?
             docker exec web busybox mknod /tmp/disk b 254 0
             docker exec web busybox dd if=/tmp/disk of=/dev/null count=1; echo $?",
        ),
        |text| {
            text.matches("not permitted").count() == 2
                && text.lines().filter(|l| *l == "1").count() == 2
        },
    );
}

fn limits_are_real(hold: &mut Scenario) {
    prints(
        hold,
        "memory, processor and processes are limited in the unit's own cgroup",
        "cd /sys/fs/cgroup/system.slice/web.service; cat memory.max cpu.max pids.max",
        &["100663296", "50000 100000", "50"],
    );
    hold.command(
        "more processes than allowed cannot be made, and the machine does not suffer",
        &as_root(
            "docker exec web sh -c 'n=0; while [ $n -lt 60 ]; do sleep 20 & n=$((n + 1)); done'
             grep ^max /sys/fs/cgroup/system.slice/web.service/pids.events",
        ),
        |text| {
            text.contains("can't fork")
                && number_after(text, "\nmax ").is_ok_and(|refused| refused > 0)
        },
    );
    hold.command(
        "what uses more memory than it may is killed, and the result says so",
        &as_root(
            "systemctl start hungry.service
             until [ \"$(systemctl is-active hungry.service)\" = failed ]; do sleep 0.2; done
             systemctl show -p Result hungry.service
             systemctl status hungry.service",
        ),
        |text| text.contains("Result=oom-kill") && text.contains("more memory than it may"),
    );
    prints(
        hold,
        "its neighbour goes on",
        "systemctl is-active web.service; /bin/busybox wget -q -O- http://127.0.0.1/ | grep -o 'starts: 2'",
        &["active", "starts: 2"],
    );
}

/// How an archive as a whole is compressed, and its name's end.
const WRAPPINGS: [(&str, Compression); 4] = [
    ("", Compression::None),
    (".gz", Compression::Gzip),
    (".zst", Compression::Zstd),
    (".bz2", Compression::Bzip2),
];

fn every_form_of_an_image_starts(hold: &mut Scenario) {
    for (suffix, compression) in WRAPPINGS {
        for (transport, stem) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar")] {
            let file = format!("{stem}{suffix}");
            prints(
                hold,
                &format!("{transport} in the form {compression} starts"),
                &format!(
                    "docker run --rm --network none --entrypoint /bin/cat {transport}:/run/orlop/cidata/{file} /etc/form"
                ),
                &[&file],
            );
        }
    }
    prints(
        hold,
        "a directory with an OCI layout starts, and by its name once it is loaded",
        "mkdir /var/layout && tar -C /var/layout -xf /run/orlop/cidata/oci.tar
         docker run --rm --network none --entrypoint /bin/cat oci:/var/layout /etc/form
         docker load -i /run/orlop/cidata/docker.tar.gz
         docker run --rm --network none --entrypoint /bin/cat form-docker.tar.gz:latest /etc/form",
        &[
            "oci.tar",
            "Loaded image: form-docker.tar.gz:latest",
            "docker.tar.gz",
        ],
    );
    hold.command(
        "an image with a wrong digest is one line that names it, and does not start",
        &as_root(
            "docker run --rm --network none --entrypoint /bin/cat oci-archive:/run/orlop/cidata/rotten.tar /etc/form; echo status $?",
        ),
        |text| {
            let lines: Vec<&str> = text.lines().collect();
            matches!(lines[..], [line, "status 125"] if line.starts_with("docker: ")
                && line.contains("form-rotten.tar:latest") && line.contains("sha256:"))
        },
    );
}

fn nothing_is_left(hold: &mut Scenario) {
    prints(
        hold,
        "a container that was stopped leaves no process, mount, link, rule or record",
        "first=$(first_of web); systemctl stop web.service; systemctl is-active web.service
         ls -d /proc/$first /sys/fs/cgroup/system.slice/web.service 2>/dev/null
         grep -c /var/lib/orlop/containers /proc/mounts
         ls /sys/class/net | grep -c veth
         /bin/busybox wget -q -O- http://10.0.2.15/ 2>/dev/null | grep -c 'starts:'
         docker ps | grep -c web",
        &["inactive", "0", "0", "0", "0"],
    );
}

/// The sample image and small ones of every form, each with its own name in `/etc/form`.
fn images(machine: &Machine) -> Result<Vec<(String, PathBuf)>> {
    let project = Project::here();
    let mut files = vec![("web.tar".to_owned(), seed::web_archive(&project)?)];
    let busybox = std::fs::read("/bin/busybox").context("read /bin/busybox")?;
    for (suffix, compression) in WRAPPINGS {
        let name = format!("docker.tar{suffix}");
        let plain = machine.directory.join("docker.tar.plain");
        recipe(&name, &busybox, Compression::None)?.write_docker_archive(&plain)?;
        let path = machine.directory.join(&name);
        let bytes = std::fs::read(&plain).context("read the archive")?;
        std::fs::write(&path, wrap(&bytes, compression)?).context("write the archive")?;
        files.push((name, path));

        // Of these the layers are compressed.
        let name = format!("oci.tar{suffix}");
        let layout = machine.directory.join(format!("layout{suffix}"));
        recipe(&name, &busybox, compression)?.write_oci_layout(&layout)?;
        let path = machine.directory.join(&name);
        pack(&layout, &path)?;
        files.push((name, path));
    }
    files.push(("rotten.tar".to_owned(), rotten(machine, &busybox)?));
    Ok(files)
}

fn recipe(name: &str, busybox: &[u8], compression: Compression) -> Result<Recipe> {
    let mut recipe = orlop_image::sample::web_server(busybox.to_vec())?;
    recipe.name = format!("form-{name}:latest");
    recipe
        .layers
        .push(Layer::new().file("etc/form", 0o644, format!("{name}\n")));
    recipe.compression = compression;
    Ok(recipe)
}

/// A layout of which one layer has another byte at its end.
fn rotten(machine: &Machine, busybox: &[u8]) -> Result<PathBuf> {
    let layout = machine.directory.join("layout-rotten");
    // No other image has this layer, which would not be read again.
    let unknown = [busybox, b"rotten"].concat();
    recipe("rotten.tar", &unknown, Compression::None)?.write_oci_layout(&layout)?;
    let mut blobs: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).context("list the blobs")? {
        let entry = entry?;
        blobs.push((entry.metadata()?.len(), entry.path()));
    }
    // The largest is the layer with busybox.
    let (_, largest) = blobs.into_iter().max().context("there is no blob")?;
    let mut bytes = std::fs::read(&largest)?;
    let last = bytes.last_mut().context("the blob is empty")?;
    *last ^= 1;
    std::fs::write(&largest, bytes)?;
    let path = machine.directory.join("rotten.tar");
    pack(&layout, &path)?;
    Ok(path)
}

fn pack(directory: &Path, archive: &Path) -> Result<()> {
    let status = Command::new("tar")
        .arg("-C")
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .status()
        .context("start tar")?;
    ensure!(status.success(), "tar: {status}");
    Ok(())
}

fn wrap(bytes: &[u8], compression: Compression) -> Result<Vec<u8>> {
    Ok(match compression {
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes)?;
            encoder.finish()?
        }
        Compression::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            ruzstd::encoding::compress_to_vec(bytes, level)
        }
        Compression::Bzip2 => {
            let mut encoder =
                bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
            encoder.write_all(bytes)?;
            encoder.finish()?
        }
        Compression::None | Compression::Xz => bytes.to_vec(),
    })
}
