//! Reading and writing little-endian fields, without a panic whatever the bytes are.

/// The bytes end before the field does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end early")]
pub(crate) struct Ended;

/// What is left to read.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Ended> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(Ended)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Ended> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Ended)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Ended> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Ended> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Ended> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Ended> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A length (u32) and so many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Ended> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// A count (u32) and so many numbers.
    pub(crate) fn ids(&mut self) -> Result<Vec<u64>, Ended> {
        let count = self.u32()? as usize;
        let (ids, _) = self.take(count.saturating_mul(8))?.as_chunks::<8>();
        Ok(ids.iter().map(|id| u64::from_le_bytes(*id)).collect())
    }
}

/// The inverse of [`Reader::bytes`].
pub(crate) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The inverse of [`Reader::ids`].
pub(crate) fn put_ids(ids: &[u64], out: &mut Vec<u8>) {
    out.extend_from_slice(&(ids.len() as u32).to_le_bytes());
    for id in ids {
        out.extend_from_slice(&id.to_le_bytes());
    }
}
