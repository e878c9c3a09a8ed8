//! What a line of the log is.

/// The least urgent priority, `debug`; priorities go from 0 (`emerg`) to this.
pub const PRIORITY_MAX: u8 = 7;

/// The names of the priorities, by number (syslog(3)).
pub const PRIORITY_NAMES: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
];

/// 128 bits that name a machine, a boot or an invocation; 32 hexadecimal digits in text.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub [u8; 16]);

impl Id {
    /// Whether all bits are zero: not known.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }

    /// The id that `text` spells: 32 hexadecimal digits, dashes between them allowed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0u8; 16];
        let mut digits = text.trim().chars().filter(|c| *c != '-');
        for byte in &mut id {
            let high = digits.next()?.to_digit(16)?;
            let low = digits.next()?.to_digit(16)?;
            *byte = u8::try_from(high << 4 | low).ok()?;
        }
        digits.next().is_none().then_some(Self(id))
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// How a message came to the journal. The numbers are those of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A unit's standard output or error.
    Stdout,
    /// The kernel's log.
    Kernel,
    /// Orlop's own boot stage, PID 1 or journal.
    Orlop,
    /// A number that this version does not know.
    Other(u8),
}

impl Transport {
    /// The number in the file.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Kernel => 2,
            Self::Orlop => 3,
            Self::Other(number) => number,
        }
    }

    /// The transport of that number.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Stdout,
            2 => Self::Kernel,
            3 => Self::Orlop,
            other => Self::Other(other),
        }
    }

    /// The word in `journalctl`'s output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Kernel => "kernel",
            Self::Orlop => "orlop",
            Self::Other(_) => "unknown",
        }
    }
}

/// One message with all that is known of it, apart from what its segment knows (machine, boot).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the journal; given by the store when it is written.
    pub sequence: u64,
    /// µs since 1970-01-01 UTC.
    pub realtime_us: u64,
    /// µs of `CLOCK_BOOTTIME`.
    pub monotonic_us: u64,
    /// 0 (`emerg`) to 7 (`debug`).
    pub priority: u8,
    /// How it came.
    pub transport: Transport,
    /// The line goes on in the unit's next entry.
    pub continues: bool,
    /// The stream ended without a newline.
    pub unterminated: bool,
    /// Full unit name.
    pub unit: Option<String>,
    /// The unit's invocation.
    pub invocation: Option<Id>,
    /// The unit's main process when its stream was opened, or the writer's.
    pub pid: Option<u32>,
    /// What stands before the colon in the short format.
    pub identifier: Option<String>,
    /// The number in `/dev/kmsg`.
    pub kernel_sequence: Option<u64>,
    /// How many messages were lost here.
    pub dropped: Option<u64>,
    /// The line, without its newline; any bytes.
    pub message: Vec<u8>,
}

impl Entry {
    /// An entry of that priority, transport and message, with nothing else known.
    #[must_use]
    pub fn new(priority: u8, transport: Transport, message: Vec<u8>) -> Self {
        Self {
            sequence: 0,
            realtime_us: 0,
            monotonic_us: 0,
            priority,
            transport,
            continues: false,
            unterminated: false,
            unit: None,
            invocation: None,
            pid: None,
            identifier: None,
            kernel_sequence: None,
            dropped: None,
            message,
        }
    }
}
