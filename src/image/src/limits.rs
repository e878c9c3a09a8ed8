//! What an image may cost before it is refused.

/// Limits for one layer. The defaults are far above what real images have, and far below what fills a machine unseen.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most bytes of an uncompressed layer, and of a whole archive that has to be uncompressed first.
    pub layer_bytes: u64,
    /// The most times that a layer may grow when it is uncompressed…
    pub ratio: u64,
    /// …once it has more than this many bytes. Small layers of zeros compress a thousandfold without malice.
    pub ratio_floor_bytes: u64,
    /// The most entries.
    pub entries: u64,
    /// The most parts of a path.
    pub path_depth: usize,
    /// Bytes of the file system that an import leaves free, at most a twentieth of its size.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            ratio: 200,
            ratio_floor_bytes: 1 << 30,
            entries: 1_000_000,
            path_depth: 256,
            reserve_bytes: 64 << 20,
        }
    }
}
