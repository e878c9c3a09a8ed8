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

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE file of 64 bits with one section and some symbols behind it.
    fn stub() -> Vec<u8> {
        let mut stub = vec![0; 0x400 + 0x200 + 33];
        put(&mut stub, 0, b"MZ");
        put(&mut stub, 0x3c, &0x40_u32.to_le_bytes());
        put(&mut stub, 0x40, b"PE\0\0");
        put(&mut stub, 0x46, &1_u16.to_le_bytes());
        put(&mut stub, 0x54, &240_u16.to_le_bytes());
        put(&mut stub, 0x58, &0x20b_u16.to_le_bytes());
        put(&mut stub, 0x58 + 32, &0x200_u32.to_le_bytes());
        put(&mut stub, 0x58 + 36, &0x200_u32.to_le_bytes());
        put(&mut stub, 0x58 + 60, &0x400_u32.to_le_bytes());
        let section = [
            &b".text\0\0\0"[..],
            &0x123_u32.to_le_bytes(),
            &0x1000_u32.to_le_bytes(),
            &0x200_u32.to_le_bytes(),
            &0x400_u32.to_le_bytes(),
        ];
        put(&mut stub, 0x58 + 240, &section.concat());
        stub
    }

    fn image(kernel: &[u8]) -> Vec<u8> {
        let parts = Parts {
            stub: &stub(),
            kernel,
            initrd: b"initrd",
            command_line: "panic=10 roothash=ab",
            kernel_version: "6.1.0",
            os_release: "ID=orlop\n",
        };
        build(&parts).unwrap()
    }

    #[test]
    fn the_parts_are_found_in_the_image() {
        let image = image(&[7; 5000]);
        let read =
            |at: u64, length: usize| Some(image.get(at as usize..at as usize + length)?.to_vec());
        assert_eq!(
            orlop_boot::pe::text(&read, ".cmdline").unwrap(),
            "panic=10 roothash=ab"
        );
        assert_eq!(orlop_boot::pe::text(&read, ".osrel").unwrap(), "ID=orlop\n");
        let sections = orlop_boot::pe::sections(&read).unwrap();
        assert_eq!(sections.len(), 6);
        let kernel = sections.iter().find(|s| &s.name == b".linux\0\0").unwrap();
        let at = kernel.file_offset as usize;
        assert_eq!(image[at..at + 5000], [7; 5000]);
    }

    #[test]
    fn an_image_that_was_cut_off_has_no_os_release() {
        let image = image(&[7; 5000]);
        for length in (0..image.len() - 512).step_by(256) {
            let read = |at: u64, count: usize| {
                let end = at as usize + count;
                Some(image.get(..length)?.get(at as usize..end)?.to_vec())
            };
            assert_eq!(orlop_boot::pe::text(&read, ".osrel"), None, "{length}");
        }
    }
}
