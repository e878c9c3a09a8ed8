//! A disk as a qcow2 file (QEMU's `docs/interop/qcow2.txt`, version 3) without clusters for what is zero.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

const CLUSTER: usize = 64 << 10;

/// Entries of a table in one cluster: of eight bytes in a table of places, of two in one of reference counts.
const PLACES: usize = CLUSTER / 8;
const COUNTS: usize = CLUSTER / 2;

/// `QCOW_OFLAG_COPIED`: the cluster has one user, so that it is written in place.
const COPIED: u64 = 1 << 63;

/// Writes `raw` as a qcow2 file.
pub(super) fn write(raw: &Path, qcow2: &Path) -> Result<()> {
    let mut disk = File::open(raw).with_context(|| format!("open {}", raw.display()))?;
    let size = disk.metadata().context("look at the disk")?.len();
    let guest_clusters = usize::try_from(size.div_ceil(CLUSTER as u64))?;

    // What holds data, found first, since the tables in front say where it goes.
    let mut cluster = vec![0; CLUSTER];
    let mut used = Vec::new();
    for number in 0..guest_clusters {
        if fill(&mut disk, &mut cluster)? && cluster.iter().any(|byte| *byte != 0) {
            used.push(number);
        }
    }

    let l2_tables = guest_clusters.div_ceil(PLACES);
    let l1_clusters = l2_tables.div_ceil(PLACES).max(1);
    // Reference counts cover themselves: more of them until they do.
    let others = 1 + l1_clusters + l2_tables + used.len();
    let mut count_blocks = 1;
    while (others + count_blocks + count_blocks.div_ceil(PLACES)) > count_blocks * COUNTS {
        count_blocks += 1;
    }
    let count_table_clusters = count_blocks.div_ceil(PLACES);
    let count_table = 1;
    let first_count_block = count_table + count_table_clusters;
    let l1_table = first_count_block + count_blocks;
    let first_l2 = l1_table + l1_clusters;
    let first_data = first_l2 + l2_tables;
    let total = first_data + used.len();
    let place = |cluster: usize| (cluster * CLUSTER) as u64;

    let file = File::create(qcow2).with_context(|| format!("make {}", qcow2.display()))?;
    let mut out = BufWriter::new(file);
    let mut header = b"QFI\xfb".to_vec();
    header.extend(3_u32.to_be_bytes());
    // No backing file.
    header.extend([0; 12]);
    header.extend((CLUSTER.trailing_zeros()).to_be_bytes());
    header.extend(size.to_be_bytes());
    // Not encrypted.
    header.extend(0_u32.to_be_bytes());
    header.extend(u32::try_from(l2_tables)?.to_be_bytes());
    header.extend(place(l1_table).to_be_bytes());
    header.extend(place(count_table).to_be_bytes());
    header.extend(u32::try_from(count_table_clusters)?.to_be_bytes());
    // No snapshots, no feature bits.
    header.extend([0; 4 + 8 + 8 + 8 + 8]);
    // Reference counts of 2^4 bits; the header's length.
    header.extend(4_u32.to_be_bytes());
    header.extend(104_u32.to_be_bytes());
    put(&mut out, header)?;

    let places = |first: usize, count: usize, flag: u64| -> Vec<u8> {
        (first..first + count)
            .flat_map(|cluster| (place(cluster) | flag).to_be_bytes())
            .collect()
    };
    put(&mut out, places(first_count_block, count_blocks, 0))?;
    let counts = (0..count_blocks * COUNTS).flat_map(|n| u16::from(n < total).to_be_bytes());
    put(&mut out, counts.collect())?;
    put(&mut out, places(first_l2, l2_tables, COPIED))?;
    let mut l2 = vec![0_u64; l2_tables * PLACES];
    for (n, number) in used.iter().enumerate() {
        if let Some(entry) = l2.get_mut(*number) {
            *entry = place(first_data + n) | COPIED;
        }
    }
    put(
        &mut out,
        l2.into_iter().flat_map(u64::to_be_bytes).collect(),
    )?;

    let disk = File::open(raw).with_context(|| format!("open {}", raw.display()))?;
    for number in used {
        cluster.fill(0);
        let at = place(number);
        let length = usize::try_from((size - at).min(CLUSTER as u64))?;
        let part = cluster.get_mut(..length).context("a cluster")?;
        std::os::unix::fs::FileExt::read_exact_at(&disk, part, at)
            .with_context(|| format!("read {}", raw.display()))?;
        out.write_all(&cluster).context("write a cluster")?;
    }
    out.flush()
        .with_context(|| format!("write {}", qcow2.display()))
}

/// Reads the next cluster, the rest of the last one being zeros; false at the end.
fn fill(disk: &mut File, cluster: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while let Some(rest) = cluster.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match disk.read(rest).context("read the disk")? {
            0 => break,
            count => filled += count,
        }
    }
    cluster.get_mut(filled..).unwrap_or_default().fill(0);
    Ok(filled > 0)
}

/// Writes whole clusters.
fn put(out: &mut impl std::io::Write, mut bytes: Vec<u8>) -> Result<()> {
    bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
    out.write_all(&bytes).context("write a table")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(file: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(*file[at..].first_chunk().unwrap())
    }

    /// The disk as QEMU would see it, and how often each cluster of the file is used.
    fn read(file: &[u8]) -> (Vec<u8>, Vec<u16>) {
        assert_eq!(&file[..8], b"QFI\xfb\0\0\0\x03");
        let size = u64_at(file, 24) as usize;
        let mut disk = vec![0; size.next_multiple_of(CLUSTER)];
        let mut uses = vec![0; file.len() / CLUSTER];
        let mut used = |at: u64| {
            let at = (at & !COPIED) as usize;
            assert_eq!(at % CLUSTER, 0);
            uses[at / CLUSTER] += 1;
            at
        };
        used(0);
        let counts = used(u64_at(file, 48));
        let l1 = used(u64_at(file, 40));
        let mut stored = Vec::new();
        for n in 0..PLACES {
            let block = u64_at(file, counts + n * 8);
            if block != 0 {
                let block = used(block);
                stored.extend(
                    file[block..block + CLUSTER]
                        .chunks_exact(2)
                        .map(|c| u16::from_be_bytes([c[0], c[1]])),
                );
            }
        }
        for (n, cluster) in disk.chunks_exact_mut(CLUSTER).enumerate() {
            let l2 = (u64_at(file, l1 + n / PLACES * 8) & !COPIED) as usize;
            let place = u64_at(file, l2 + n % PLACES * 8);
            if n % PLACES == 0 {
                used(l2 as u64);
            }
            if place != 0 {
                let at = used(place);
                cluster.copy_from_slice(&file[at..at + CLUSTER]);
            }
        }
        disk.truncate(size);
        stored.truncate(uses.len());
        assert_eq!(stored, uses);
        (disk, uses)
    }

    #[test]
    fn the_disk_is_in_the_file_and_its_holes_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let (raw, qcow2) = (directory.path().join("raw"), directory.path().join("qcow2"));
        let mut disk = vec![0; 40 * CLUSTER + 512];
        for at in [0, 5 * CLUSTER + 7, 40 * CLUSTER + 511] {
            disk[at] = 1;
        }
        std::fs::write(&raw, &disk).unwrap();
        write(&raw, &qcow2).unwrap();
        let (seen, uses) = read(&std::fs::read(&qcow2).unwrap());
        assert!(seen == disk);
        // The header, two tables of counts, two of places, three clusters of data.
        assert_eq!(uses, [1; 8]);
    }
}
