//! A small root made of busybox, and a runtime to start it with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use orlop_container::{
    Cgroup, Container, DEFAULT_CAPABILITIES, Exec, Fill, Options, Request, Running, Seccomp,
    compose,
};
use orlop_sys::pidfd::Exit;
use serde::{Deserialize, Serialize};

/// The word that makes this program the runtime.
pub(crate) const RUNTIME: &str = "--be-the-runtime";

/// What the runtime is to start.
#[derive(Serialize, Deserialize)]
struct Job {
    spec: oci_spec::runtime::Spec,
    layers: Vec<PathBuf>,
    directory: PathBuf,
    volumes: Vec<(PathBuf, PathBuf)>,
    user: Option<String>,
    cgroup: Option<PathBuf>,
    start: bool,
    /// Runs in the container besides the payload; the outcome is then this one's.
    exec: Option<Vec<String>>,
}

/// Starts the container that the job describes and exits as it does.
pub(crate) fn be_the_runtime(job: &Path) -> ExitCode {
    let job: Job = serde_json::from_slice(&fs::read(job).unwrap()).unwrap();
    let options = Options {
        layers: job.layers,
        directory: job.directory,
        volumes: job
            .volumes
            .into_iter()
            .map(|(volume, destination)| Fill {
                volume,
                destination,
            })
            .collect(),
        user: job.user,
        groups: Vec::new(),
        seccomp: Seccomp::Default,
        cgroup: job.cgroup.map_or(Cgroup::Inherited, Cgroup::New),
        child_of_our_parent: false,
    };
    let result = Container::prepare(&job.spec, options).and_then(|container| {
        let mut created = container.create()?;
        created.wait_ready()?;
        if job.start {
            created.start().map(Some)
        } else {
            Ok(None)
        }
    });
    match result {
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(payload)) => {
            let exit = match job.exec {
                Some(command) => further(&payload, command),
                None => payload.wait().unwrap(),
            };
            match exit {
                Exit::Code(code) => ExitCode::from(code as u8),
                Exit::Signal(signal) => ExitCode::from(128 + signal as u8),
            }
        }
    }
}

/// Runs a further process beside the payload, and ends that too.
fn further(payload: &Running, command: Vec<String>) -> Exit {
    let request = Exec {
        command,
        environment: vec!["MORE=1".into()],
        user: Some("web".into()),
        ..Exec::default()
    };
    let exit = match orlop_container::exec(payload.pidfd(), payload.pid(), &request) {
        Ok(further) => further.wait().unwrap(),
        Err(error) => {
            eprintln!("{error}");
            Exit::Code(error.exit_code().into())
        }
    };
    // It would hold our standard output open.
    payload.signal(9).unwrap();
    payload.wait().unwrap();
    exit
}

/// What came of a container.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// A root, and everything that is needed to start it.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) request: Request,
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) volumes: Vec<(PathBuf, PathBuf)>,
    pub(crate) user: Option<String>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) start: bool,
    pub(crate) exec: Option<Vec<String>>,
}

const APPLETS: [&str; 27] = [
    "sh", "ls", "cat", "id", "mount", "hostname", "echo", "grep", "env", "true", "false", "touch",
    "readlink", "mknod", "head", "pwd", "unshare", "wc", "sleep", "kill", "stat", "umount",
    "chroot", "sort", "tr", "ip", "rm",
];

impl World {
    /// A root with busybox under all its names, accounts, and nothing else.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("layer");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv/web:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            root.join("etc/group"),
            "root:x:0:\nweb:x:102:\nlogs:x:200:web\n",
        )
        .unwrap();
        Self {
            request: Request {
                hostname: "inside".into(),
                capabilities: DEFAULT_CAPABILITIES,
                no_new_privileges: true,
                own_network: true,
                ..Request::default()
            },
            layers: vec![root],
            volumes: Vec::new(),
            user: None,
            cgroup: None,
            start: true,
            exec: None,
            directory,
        }
    }

    /// A path in the image.
    pub(crate) fn image(&self, path: &str) -> PathBuf {
        self.layers[0].join(path)
    }

    /// A new directory of the machine.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The runtime's command line, the job written.
    pub(crate) fn command(&self) -> Command {
        let job = Job {
            spec: compose(&self.request, None).unwrap(),
            layers: self.layers.clone(),
            directory: self.directory.path().join("container"),
            volumes: self.volumes.clone(),
            user: self.user.clone(),
            cgroup: self.cgroup.clone(),
            start: self.start,
            exec: self.exec.clone(),
        };
        let path = self.directory.path().join("job.json");
        fs::write(&path, serde_json::to_vec(&job).unwrap()).unwrap();
        let mut command = Command::new("/proc/self/exe");
        command.arg(RUNTIME).arg(path).stdin(Stdio::null());
        command
    }

    /// Runs a program of the image.
    pub(crate) fn run(&mut self, command: &[&str]) -> Outcome {
        self.request.command = command.iter().map(|w| (*w).to_owned()).collect();
        let output = self.command().output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a script of the image's shell, which has to succeed; what it printed.
    #[track_caller]
    pub(crate) fn script(&mut self, script: &str) -> String {
        let outcome = self.run(&["sh", "-c", script]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.output
    }
}
