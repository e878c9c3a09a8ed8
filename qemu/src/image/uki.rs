//! Unified Kernel Images (UAPI.5): the loader's stub with kernel, initramfs and command line as further sections.

use anyhow::{Context as _, Result, ensure};
use orlop_boot::little_endian::{u16_at, u32_at};

/// A section header's size.
const HEADER: usize = 40;

/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`
const READABLE_DATA: u32 = 0x4000_0040;

/// What an image is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    /// systemd's `linuxx64.efi.stub`.
    pub(super) stub: &'a [u8],
    pub(super) kernel: &'a [u8],
    pub(super) initrd: &'a [u8],
    pub(super) command_line: &'a str,
    /// What `uname -r` will say.
    pub(super) kernel_version: &'a str,
    pub(super) os_release: &'a str,
}

/// Puts the parts together.
///
/// The texts come last, `.osrel` after all others: the loader lists no image without it, so that one that was cut off is not
/// tried, since a loader that cannot load what it has chosen gives up.
pub(super) fn build(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let sections: [(&[u8; 8], &[u8]); 5] = [
        (b".linux\0\0", parts.kernel),
        (b".initrd\0", parts.initrd),
        (b".uname\0\0", parts.kernel_version.as_bytes()),
        (b".cmdline", parts.command_line.as_bytes()),
        (b".osrel\0\0", parts.os_release.as_bytes()),
    ];
    append(parts.stub, &sections).context("the loader's stub")
}

/// Appends sections to a PE executable. Fields by Microsoft's PE format; offsets are from `PE\0\0`.
fn append(stub: &[u8], sections: &[(&[u8; 8], &[u8])]) -> Result<Vec<u8>> {
    let word = |at: usize| u32_at(stub, at).context("it ends too soon");
    let pe = word(0x3c)? as usize;
    ensure!(stub.get(pe..pe + 4) == Some(b"PE\0\0"), "it is no PE file");
    let count = usize::from(u16_at(stub, pe + 6).context("it ends too soon")?);
    let optional = usize::from(u16_at(stub, pe + 20).context("it ends too soon")?);
    let optional_at = pe + 24;
    ensure!(
        u16_at(stub, optional_at) == Some(0x20b),
        "it is not of 64 bits"
    );
    let file_alignment = word(optional_at + 36)? as usize;
    let headers = word(optional_at + 60)? as usize;
    let table = optional_at + optional;
    ensure!(
        table + (count + sections.len()) * HEADER <= headers,
        "its headers have no room for {} sections",
        sections.len()
    );

    // Where the stub's own sections end, in the file and in memory. Symbols behind them are for debuggers alone.
    let mut file_end = headers;
    let mut memory_end = headers;
    for header in (0..count).map(|n| table + n * HEADER) {
        file_end = file_end.max(word(header + 20)? as usize + word(header + 16)? as usize);
        memory_end = memory_end.max(word(header + 12)? as usize + word(header + 8)? as usize);
    }
    let mut image = stub.get(..file_end).context("it ends too soon")?.to_vec();
    for (n, (name, content)) in sections.iter().enumerate() {
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        memory_end = memory_end.next_multiple_of(4096);
        let header: Vec<u8> = [
            name.as_slice(),
            &u32::try_from(content.len())?.to_le_bytes(),
            &u32::try_from(memory_end)?.to_le_bytes(),
            &u32::try_from(content.len().next_multiple_of(file_alignment))?.to_le_bytes(),
            &u32::try_from(image.len())?.to_le_bytes(),
            &[0; 12],
            &READABLE_DATA.to_le_bytes(),
        ]
        .concat();
        put(&mut image, table + (count + n) * HEADER, &header);
        image.extend_from_slice(content);
        memory_end += content.len();
    }
    image.resize(image.len().next_multiple_of(file_alignment), 0);
    let section_alignment = word(optional_at + 32)? as usize;
    let size = memory_end.next_multiple_of(section_alignment.max(4096));
    put(
        &mut image,
        pe + 6,
        &u16::try_from(count + sections.len())?.to_le_bytes(),
    );
    // No symbols any more; their place, and their number.
    put(&mut image, pe + 12, &[0; 8]);
    put(
        &mut image,
        optional_at + 56,
        &u32::try_from(size)?.to_le_bytes(),
    );
    // The checksum is optional.
    put(&mut image, optional_at + 64, &[0; 4]);
    Ok(image)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in image.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}
