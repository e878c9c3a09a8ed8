//! QEMU's control socket (QMP, docs/interop/qmp-spec.rst): one command, one answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::console;

/// A connection that has negotiated its capabilities.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens, or it is not QEMU.
    pub fn open(path: &Path) -> Result<Self> {
        let stream = console::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments: `system_powerdown`, `quit`, `system_reset`.
    ///
    /// # Errors
    /// QEMU refuses or is gone.
    pub fn execute(&mut self, command: &str) -> Result<Value> {
        self.execute_with(command, &serde_json::json!({}))
    }

    /// Runs a command with arguments.
    ///
    /// # Errors
    /// QEMU refuses or is gone.
    pub fn execute_with(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = serde_json::json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{request}")
            .with_context(|| format!("tell QEMU to {command}"))?;
        // Events come between a command and its answer.
        loop {
            let answer = self.read()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self
            .reader
            .read_line(&mut line)
            .context("read QEMU's answer")?;
        if count == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU answers {line:?}"))
    }
}
