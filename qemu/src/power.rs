//! A disk whose power can be cut: what was not flushed is lost in part, as in the cache of a real disk.
//!
//! Killing QEMU loses nothing that it has written: the host's page cache keeps that. So the guest's disk is a server of ours
//! here, by the NBD protocol (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), which holds written
//! sectors back until the guest flushes. At a cut each of them is kept or lost by itself: sectors of 512 bytes are whole or
//! unchanged, everything larger may be torn, and order means nothing without a flush. Not modelled are disks that lie about
//! flushes, and sectors that are unreadable after a cut.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};

const SECTOR: usize = 512;

/// So many sectors are held back at most; a disk's cache is finite too.
const MOST_SECTORS: usize = (128 << 20) / SECTOR;

/// The longest request, in bytes.
const LONGEST: u32 = 64 << 20;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// `NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH`
const FLAGS: u16 = 1 | 4;

/// When the power goes, counted from [`PowerDisk::arm`] on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// After so many bytes were written.
    Bytes(u64),
    /// At the flush after so many flushes, which is not carried out.
    Flushes(u64),
}

#[derive(Debug)]
struct State {
    file: File,
    size: u64,
    /// Written, not flushed.
    pending: BTreeMap<u64, [u8; SECTOR]>,
    armed: Option<Cut>,
    is_cut: bool,
    /// Requests of connections from before a cut are nobody's.
    generation: u64,
    /// What was written and flushed since [`PowerDisk::arm`].
    bytes: u64,
    flushes: u64,
}

/// The disk. It serves as long as this program runs.
#[derive(Debug, Clone)]
pub struct PowerDisk {
    /// The port of 127.0.0.1 where it is served.
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl PowerDisk {
    /// Serves the disk in the file `path`.
    ///
    /// # Errors
    /// The file cannot be opened, or there is no port.
    pub fn serve(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).open(path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let size = file.metadata().context("look at the disk")?.len();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for QEMU")?;
        let disk = Self {
            port: listener.local_addr().context("the disk's port")?.port(),
            state: Arc::new(Mutex::new(State {
                file,
                size,
                pending: BTreeMap::new(),
                armed: None,
                is_cut: false,
                generation: 0,
                bytes: 0,
                flushes: 0,
            })),
        };
        let state = Arc::clone(&disk.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                // QEMU that is killed ends its connection.
                thread::spawn(move || {
                    let _ = Connection::run(stream, &state);
                });
            }
        });
        Ok(disk)
    }

    /// Has the power go at `cut`.
    pub fn arm(&self, cut: Cut) {
        let mut state = lock(&self.state);
        state.armed = Some(cut);
        (state.bytes, state.flushes) = (0, 0);
    }

    /// Whether the power is gone: from then on the disk answers nothing, and QEMU is to be killed.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        lock(&self.state).is_cut
    }

    /// The bytes and flushes since the last [`PowerDisk::arm`].
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.bytes, state.flushes)
    }

    /// Brings the power back after QEMU was killed: of what was not flushed, `keeps` decides for each sector.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn restore(&self, mut keeps: impl FnMut() -> bool) -> Result<()> {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.is_cut = false;
        state.armed = None;
        let pending = std::mem::take(&mut state.pending);
        for (sector, bytes) in pending {
            if keeps() {
                state
                    .file
                    .write_all_at(&bytes, sector * SECTOR as u64)
                    .context("write to the disk")?;
            }
        }
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        let (first, last) = (at / SECTOR as u64, (at + length as u64) / SECTOR as u64);
        for (sector, held) in self.pending.range(first..last) {
            let from = (sector - first) as usize * SECTOR;
            if let Some(into) = bytes.get_mut(from..from + SECTOR) {
                into.copy_from_slice(held);
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        // A write during which the power goes may get there in part.
        self.is_cut = matches!(self.armed, Some(Cut::Bytes(most)) if self.bytes > most);
        for (sector, bytes) in (at / SECTOR as u64..).zip(bytes.as_chunks().0) {
            self.pending.insert(sector, *bytes);
        }
        if self.pending.len() > MOST_SECTORS {
            self.settle()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        if matches!(self.armed, Some(Cut::Flushes(most)) if self.flushes > most) {
            self.is_cut = true;
            return Ok(());
        }
        self.settle()
    }

    fn settle(&mut self) -> io::Result<()> {
        for (sector, bytes) in std::mem::take(&mut self.pending) {
            self.file.write_all_at(&bytes, sector * SECTOR as u64)?;
        }
        Ok(())
    }
}

/// One QEMU's connection.
struct Connection<'a> {
    stream: TcpStream,
    state: &'a Mutex<State>,
    generation: u64,
}

impl Connection<'_> {
    fn run(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let generation = lock(state).generation;
        let mut connection = Connection {
            stream,
            state,
            generation,
        };
        if connection.negotiate()? {
            connection.transmit()?;
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Fixed newstyle negotiation; gives whether transmission begins.
    fn negotiate(&mut self) -> io::Result<bool> {
        const FIXED_NEWSTYLE_NO_ZEROES: u16 = 1 | 2;
        const ABORT: u32 = 2;
        const INFO: u32 = 6;
        const GO: u32 = 7;
        const ACK: u32 = 1;
        const EXPORT: u32 = 3;
        const UNSUPPORTED: u32 = 1 << 31 | 1;
        self.stream.write_all(b"NBDMAGICIHAVEOPT")?;
        self.stream
            .write_all(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes())?;
        let _client_flags: [u8; 4] = self.take()?;
        loop {
            if u64::from_be_bytes(self.take()?) != OPTION_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let option = u32::from_be_bytes(self.take()?);
            let length = u32::from_be_bytes(self.take()?).min(LONGEST);
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                ABORT => {
                    self.reply_option(option, ACK, &[])?;
                    return Ok(false);
                }
                INFO | GO => {
                    let size = lock(self.state).size;
                    let export = [
                        &0_u16.to_be_bytes()[..],
                        &size.to_be_bytes(),
                        &FLAGS.to_be_bytes(),
                    ];
                    self.reply_option(option, EXPORT, &export.concat())?;
                    self.reply_option(option, ACK, &[])?;
                    if option == GO {
                        return Ok(true);
                    }
                }
                _ => self.reply_option(option, UNSUPPORTED, &[])?,
            }
        }
    }

    fn reply_option(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).unwrap_or_default();
        let reply = [
            &OPTION_REPLY_MAGIC.to_be_bytes()[..],
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ];
        self.stream.write_all(&reply.concat())
    }

    fn transmit(&mut self) -> io::Result<()> {
        const READ: u16 = 0;
        const WRITE: u16 = 1;
        const DISCONNECT: u16 = 2;
        const FLUSH: u16 = 3;
        const INVALID: u32 = 22;
        loop {
            if u32::from_be_bytes(self.take()?) != REQUEST_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let _flags: [u8; 2] = self.take()?;
            let kind = u16::from_be_bytes(self.take()?);
            let handle: [u8; 8] = self.take()?;
            let at = u64::from_be_bytes(self.take()?);
            let length = u32::from_be_bytes(self.take()?);
            if length > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut data = Vec::new();
            if kind == WRITE {
                data.resize(length as usize, 0);
                self.stream.read_exact(&mut data)?;
            }
            let (error, data) = {
                let mut state = lock(self.state);
                // After a cut nothing is answered: an error would be news to the guest.
                if state.is_cut || state.generation != self.generation {
                    continue;
                }
                let result = match kind {
                    READ => state.read(at, length as usize),
                    WRITE => state.write(at, &data).map(|()| Vec::new()),
                    FLUSH => state.flush().map(|()| Vec::new()),
                    DISCONNECT => return Ok(()),
                    _ => Err(io::ErrorKind::InvalidInput.into()),
                };
                if state.is_cut {
                    continue;
                }
                match result {
                    Ok(data) => (0, data),
                    Err(_) => (INVALID, Vec::new()),
                }
            };
            let reply = [
                &REPLY_MAGIC.to_be_bytes()[..],
                &error.to_be_bytes(),
                &handle,
            ];
            self.stream.write_all(&reply.concat())?;
            self.stream.write_all(&data)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client by hand: it writes and flushes as QEMU does.
    struct Client(TcpStream);

    impl Client {
        fn connect(disk: &PowerDisk) -> Self {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, disk.port)).expect("connect");
            let mut greeting = [0; 18];
            stream.read_exact(&mut greeting).expect("greeting");
            let mut go = vec![0, 0, 0, 3];
            go.extend(OPTION_MAGIC.to_be_bytes());
            go.extend([0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
            stream.write_all(&go).expect("go");
            // The export's reply with its 12 bytes, and the acknowledgement.
            let mut replies = [0; 20 + 12 + 20];
            stream.read_exact(&mut replies).expect("replies");
            Self(stream)
        }

        fn ask(&mut self, kind: u16, at: u64, length: u32, data: &[u8]) {
            let request = [
                &REQUEST_MAGIC.to_be_bytes()[..],
                &[0; 2],
                &kind.to_be_bytes(),
                &[7; 8],
                &at.to_be_bytes(),
                &length.to_be_bytes(),
                data,
            ];
            self.0.write_all(&request.concat()).expect("ask");
        }

        fn answer(&mut self, length: usize) -> Vec<u8> {
            let mut reply = vec![0; 16 + length];
            self.0.read_exact(&mut reply).expect("an answer");
            assert_eq!(reply[4..8], [0; 4], "an error");
            reply.split_off(16)
        }

        fn write(&mut self, sector: u64, value: u8) {
            self.ask(1, sector * 512, 512, &[value; 512]);
            self.answer(0);
        }

        fn flush(&mut self) {
            self.ask(3, 0, 0, &[]);
            self.answer(0);
        }

        fn read(&mut self, sector: u64) -> u8 {
            self.ask(0, sector * 512, 512, &[]);
            self.answer(512)[0]
        }
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_is_lost_at_a_cut() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 4096]).expect("a disk");
        let disk = PowerDisk::serve(&path).expect("a server");
        let mut client = Client::connect(&disk);
        client.write(1, 1);
        client.flush();
        disk.arm(Cut::Flushes(0));
        client.write(1, 2);
        client.write(2, 2);
        assert_eq!(
            (client.read(1), client.read(2)),
            (2, 2),
            "it reads what it wrote"
        );
        assert!(!disk.is_cut());
        client.ask(3, 0, 0, &[]);
        while !disk.is_cut() {
            thread::yield_now();
        }
        let mut number = 0;
        disk.restore(|| {
            number += 1;
            number == 2
        })
        .expect("power");
        let mut client = Client::connect(&disk);
        assert_eq!((client.read(1), client.read(2)), (1, 2));
        disk.arm(Cut::Bytes(1000));
        client.write(3, 3);
        client.ask(1, 4 * 512, 512, &[4; 512]);
        while !disk.is_cut() {
            thread::yield_now();
        }
        disk.restore(|| true).expect("power");
        let mut client = Client::connect(&disk);
        assert_eq!((client.read(3), client.read(4)), (3, 4));
    }
}
