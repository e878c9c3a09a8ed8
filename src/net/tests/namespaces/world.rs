//! Namespaces to test in: threads that have unshared their network, and what runs in them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

/// A bound for what answers at once when it works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for what must not happen.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// A network namespace, held by a descriptor.
pub(crate) struct World(File);

impl World {
    /// A new namespace with its loopback on; `None`, with the reason printed, where that cannot be had.
    pub(crate) fn new() -> Option<Self> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|err| format!("unshare: {err}"))?;
            run("ip", &["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net")
                .map_err(|err| format!("/proc/thread-self/ns/net: {err}"))
        })
        .join()
        .expect("the thread does not panic");
        match made {
            Ok(file) => Some(Self(file)),
            Err(err) => {
                eprintln!("SKIPPED: no network namespace to test in ({err})");
                None
            }
        }
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.fd(), CloneFlags::CLONE_NEWNET)
                    .expect("a namespace of ours can be entered");
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs a command inside and returns what it prints.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> String {
        self.run(|| run(program, arguments))
    }

    /// Runs `ip` with words from one line.
    pub(crate) fn ip(&self, line: &str) -> String {
        self.command("ip", &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Serves TCP from a thread that ends with the process: each caller is told its own address.
    pub(crate) fn serve_tcp(&self, address: &str) {
        let listener = self.run(|| TcpListener::bind(address).expect("the port is free"));
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(format!("you are {}", peer.ip()).as_bytes());
            }
        });
    }

    /// Serves UDP likewise.
    pub(crate) fn serve_udp(&self, address: &str) {
        let socket = self.run(|| UdpSocket::bind(address).expect("the port is free"));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("you are {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// What a TCP server answers, or why it does not.
    pub(crate) fn call_tcp(&self, address: &str, patience: Duration) -> Result<String, String> {
        let address: SocketAddr = address.parse().expect("an address");
        self.run(|| {
            let mut stream =
                TcpStream::connect_timeout(&address, patience).map_err(|err| err.to_string())?;
            stream
                .set_read_timeout(Some(patience))
                .map_err(|err| err.to_string())?;
            let mut text = String::new();
            stream
                .read_to_string(&mut text)
                .map_err(|err| err.to_string())?;
            Ok(text)
        })
    }

    /// A socket of the namespace that talks to a UDP server.
    pub(crate) fn udp_client(&self, address: &str) -> UdpClient {
        self.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("some port is free");
            socket.connect(address).expect("there is a route");
            UdpClient(socket)
        })
    }

    /// What a UDP server answers, or why it does not.
    pub(crate) fn call_udp(&self, address: &str, patience: Duration) -> Result<String, String> {
        self.udp_client(address).ask(patience)
    }
}

/// A UDP socket that asks one server.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    /// Sends, and expects nothing.
    pub(crate) fn tell(&self) {
        self.0.send(b"?").expect("there is a route");
    }

    /// Asks once, and returns the answer.
    pub(crate) fn ask(&self, patience: Duration) -> Result<String, String> {
        self.0
            .set_read_timeout(Some(patience))
            .map_err(|err| err.to_string())?;
        self.0.send(b"?").map_err(|err| err.to_string())?;
        let mut buffer = [0; 64];
        let len = self.0.recv(&mut buffer).map_err(|err| err.to_string())?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }
}

/// Runs a program in the caller's namespace; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|err| panic!("{program}: {err}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Moves a link of one namespace to another.
pub(crate) fn move_link(from: &World, name: &str, to: &World) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), to.fd().as_raw_fd());
    from.ip(&format!("link set {name} netns {path}"));
}
