//! Versions, payloads and a disk with two slots.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_boot::pe;
use orlop_disk::{PartitionTable, TableEntry};
use orlop_update::hex::Hash;
use orlop_update::pack::{Compressor, Contents, pack};
use orlop_update::payload::Payload;
use orlop_update::signature::{Keyring, SecretKey};
use orlop_update::slots::{ROOT_TYPE, Running, Slot, VERITY_TYPE};
use orlop_update::storage::{Disk, Esp};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::simulation::{SimDisk, SimEsp};

pub(crate) const DISK_BYTES: u64 = 1 << 20;
pub(crate) const ROOT_SLOT_BYTES: u64 = 128 << 10;
pub(crate) const ESP_BYTES: u64 = 512 << 10;

/// Where systemd-boot would be.
pub(crate) const LOADER: &[u8] = b"MZ the loader";

/// A version's parts.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) version: String,
    pub(crate) root_hash: Hash,
    pub(crate) uki: Vec<u8>,
    pub(crate) root: Vec<u8>,
    pub(crate) verity: Vec<u8>,
}

impl Release {
    /// Half of the root compresses, half does not. The hash is not that of a real tree; nothing here asks dm-verity.
    pub(crate) fn new(version: &str) -> Self {
        let mut noise = u64::from_le_bytes(Sha256::digest(version)[..8].try_into().unwrap()) | 1;
        let mut bytes = |length: usize| -> Vec<u8> {
            let mut next = || {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            };
            let mut bytes: Vec<u8> = (0..length / 2).map(|_| next()).collect();
            bytes.resize(length, next());
            bytes
        };
        let (root, verity) = (bytes(64 << 10), bytes(8 << 10));
        let root_hash = Hash(Sha256::digest(&root).into());
        let mut uki = pe::sample(&format!("console=ttyS0 roothash={root_hash}"), 2048);
        uki.extend(bytes(40_000));
        Self {
            version: version.to_owned(),
            root_hash,
            uki,
            root,
            verity,
        }
    }

    pub(crate) fn contents(&self, directory: &Path) -> Contents {
        let file = |name: &str, bytes: &[u8]| -> PathBuf {
            let path = directory.join(format!("{}-{name}", self.version));
            fs::write(&path, bytes).unwrap();
            path
        };
        Contents {
            version: self.version.parse().unwrap(),
            architecture: "x86_64".to_owned(),
            channel: "stable".to_owned(),
            root_hash: self.root_hash,
            uki: file("uki", &self.uki),
            root: file("root", &self.root),
            verity: file("verity", &self.verity),
            loader: Some(file("loader", LOADER)),
        }
    }

    /// The payload's bytes.
    pub(crate) fn payload(&self, key: &SecretKey) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("payload");
        pack(
            &self.contents(directory.path()),
            &Compressor::BuiltIn,
            Some(key),
            &path,
        )
        .unwrap();
        fs::read(path).unwrap()
    }
}

/// A machine that runs `release` from slot a.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) disk: SimDisk,
    pub(crate) esp: SimEsp,
    pub(crate) running: Running,
}

impl Machine {
    pub(crate) fn new(release: &Release) -> Self {
        let mut disk = SimDisk::new(DISK_BYTES);
        let mut table = PartitionTable::new(DISK_BYTES, 512);
        let mut start_bytes = 64 << 10;
        for (number, (slot, is_tree)) in
            (1..).zip([("a", false), ("a", true), ("b", false), ("b", true)])
        {
            let name = if is_tree {
                Slot::verity_name(slot)
            } else {
                Slot::root_name(slot)
            };
            let uuid = if is_tree {
                release.root_hash.verity_uuid()
            } else {
                release.root_hash.root_uuid()
            };
            let entry = TableEntry {
                number,
                kind: if is_tree { VERITY_TYPE } else { ROOT_TYPE },
                unique: if slot == "a" {
                    uuid
                } else {
                    Uuid::from_u128(u128::from(number))
                },
                start_bytes,
                size_bytes: if is_tree { 64 << 10 } else { ROOT_SLOT_BYTES },
                attributes: 0,
                name,
            };
            start_bytes += entry.size_bytes;
            if slot == "a" {
                disk.write_at(
                    if is_tree {
                        &release.verity
                    } else {
                        &release.root
                    },
                    entry.start_bytes,
                )
                .unwrap();
            }
            table.entries.push(entry);
        }
        for write in table.writes().unwrap() {
            disk.write_at(&write.bytes, write.at).unwrap();
        }
        disk.sync().unwrap();
        let mut esp = SimEsp::new(ESP_BYTES);
        esp.write_at(&format!("orlop_{}.efi", release.version), &release.uki, 0)
            .unwrap();
        esp.sync().unwrap();
        let running = Running {
            root_hash: Some(release.root_hash),
            version: release.version.parse().unwrap(),
            architecture: "x86_64".to_owned(),
        };
        Self { disk, esp, running }
    }

    /// The machine after a reboot into `release`.
    pub(crate) fn reboot_into(mut self, release: &Release) -> Self {
        self.running.root_hash = Some(release.root_hash);
        self.running.version = release.version.parse().unwrap();
        self
    }
}

pub(crate) fn open<'a>(payload: &'a [u8], key: &SecretKey) -> Payload<&'a [u8]> {
    Payload::open(payload, &Keyring::new(vec![key.public()])).unwrap()
}
