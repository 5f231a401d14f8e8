//! KV cache of one key/value head, for [`crate::attend`].
//!
//! In the exact mode it stores f32; in the fast mode INT8 codes with one scale per position, in the layout that the dot
//! products read.

use crate::huge_pages::{ArenaSlice, HugePageArena};
use crate::matmul::Mode;

/// Positions per block of a cache, the unit of split-KV attention: large enough that the keys of a block, and its values, are
/// whole pages of memory.
pub const KV_BLOCK: usize = 256;

/// Keys and values of one head, in blocks that are allocated as the sequence grows.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) width: usize,
    pub(crate) blocks: Blocks,
}

#[derive(Debug)]
pub(crate) enum Blocks {
    Exact(Vec<ExactBlock>),
    Int8(Vec<Int8Block>),
}

#[derive(Debug)]
pub(crate) struct ExactBlock {
    /// [KV_BLOCK, width]
    pub keys: ArenaSlice<f32>,
    /// [KV_BLOCK, width]
    pub values: ArenaSlice<f32>,
}

#[derive(Debug)]
pub(crate) struct Int8Block {
    /// [KV_BLOCK / 16][width / 4, rounded up][16][4]: a vector holds four columns of sixteen positions. 128 is added to codes.
    pub keys: ArenaSlice<u8>,
    /// Bits 4..8 of codes to which 128 was added, [width / 32, rounded up][KV_BLOCK / 4][16][4]: a vector holds four positions of
    /// sixteen columns in its low nibbles and of the next sixteen columns in its high ones.
    pub upper_values: ArenaSlice<u8>,
    /// Bits 0..4, in the same layout.
    pub lower_values: ArenaSlice<u8>,
    pub key_scales: [f32; KV_BLOCK],
    pub value_scales: [f32; KV_BLOCK],
}

/// Bits 4..8 of two zero codes plus 128; bits 0..4 are zero.
const ZERO_NIBBLES: u8 = 0x88;

impl Int8Block {
    fn new(width: usize, arena: &mut HugePageArena) -> Self {
        let nibbles = KV_BLOCK * width.next_multiple_of(32) / 2;
        let mut block = Self {
            keys: arena.alloc_zeroed(KV_BLOCK * width.next_multiple_of(4)),
            upper_values: arena.alloc_zeroed(nibbles),
            lower_values: arena.alloc_zeroed(nibbles),
            key_scales: [0.0; KV_BLOCK],
            value_scales: [0.0; KV_BLOCK],
        };
        block.clear();
        block
    }

    fn clear(&mut self) {
        self.keys.fill(128);
        self.upper_values.fill(ZERO_NIBBLES);
        self.lower_values.fill(0);
        self.key_scales.fill(0.0);
        self.value_scales.fill(0.0);
    }

    fn write(&mut self, at: usize, key: &[f32], value: &[f32]) {
        let code = |x: f32| x.round_ties_even() as i8 as u8 ^ 128;
        let (scale, inverse) = code_scale(key);
        self.key_scales[at] = scale;
        for (column, x) in key.iter().enumerate() {
            let place = (at / 16 * key.len().div_ceil(4) + column / 4) * 64 + at % 16 * 4 + column % 4;
            self.keys[place] = code(x * inverse);
        }
        let (scale, inverse) = code_scale(value);
        self.value_scales[at] = scale;
        for (column, x) in value.iter().enumerate() {
            let place = column / 32 * 16 * KV_BLOCK + at / 4 * 64 + column % 16 * 4 + at % 4;
            let (code, shift) = (code(x * inverse), column % 32 / 16 * 4);
            for (byte, nibble) in
                [(&mut self.upper_values[place], code >> 4), (&mut self.lower_values[place], code & 15)]
            {
                *byte = *byte & !(15 << shift) | nibble << shift;
            }
        }
    }

    /// Parts of a saved block, in order.
    fn parts(&self) -> [&[u8]; 5] {
        let [key_scales, value_scales] = [&self.key_scales, &self.value_scales];
        [
            &self.keys,
            &self.upper_values,
            &self.lower_values,
            bytemuck::cast_slice(key_scales),
            bytemuck::cast_slice(value_scales),
        ]
    }

    fn parts_mut(&mut self) -> [&mut [u8]; 5] {
        [
            &mut self.keys,
            &mut self.upper_values,
            &mut self.lower_values,
            bytemuck::cast_slice_mut(&mut self.key_scales),
            bytemuck::cast_slice_mut(&mut self.value_scales),
        ]
    }
}

impl KvCache {
    /// An empty cache for a head of `width` columns.
    pub fn new(mode: Mode, width: usize) -> Self {
        let blocks = match mode {
            Mode::Exact => Blocks::Exact(Vec::new()),
            Mode::Fast => Blocks::Int8(Vec::new()),
        };
        Self { width, blocks }
    }

    /// Size of one block.
    fn block_bytes(&self) -> usize {
        match self.blocks {
            Blocks::Exact(_) => 8 * KV_BLOCK * self.width,
            Blocks::Int8(_) => {
                KV_BLOCK * (self.width.next_multiple_of(4) + self.width.next_multiple_of(32) + 8)
            }
        }
    }

    /// Size of all blocks in bytes.
    pub fn size_bytes(&self) -> usize {
        let count = match &self.blocks {
            Blocks::Exact(blocks) => blocks.len(),
            Blocks::Int8(blocks) => blocks.len(),
        };
        count * self.block_bytes()
    }

    /// Allocates blocks for positions `0..positions`.
    pub fn reserve(&mut self, positions: usize, arena: &mut HugePageArena) {
        let (count, width) = (positions.div_ceil(KV_BLOCK), self.width);
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                while blocks.len() < count {
                    let mut zeros = || arena.alloc_zeroed(KV_BLOCK * width);
                    blocks.push(ExactBlock { keys: zeros(), values: zeros() });
                }
            }
            Blocks::Int8(blocks) => {
                while blocks.len() < count {
                    blocks.push(Int8Block::new(width, arena));
                }
            }
        }
    }

    /// Clears all positions without releasing memory.
    pub fn clear(&mut self) {
        self.clear_from(0);
    }

    fn clear_from(&mut self, block: usize) {
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                for block in blocks.iter_mut().skip(block) {
                    block.keys.fill(0.0);
                    block.values.fill(0.0);
                }
            }
            Blocks::Int8(blocks) => blocks.iter_mut().skip(block).for_each(Int8Block::clear),
        }
    }

    /// Writes one reserved position; `key` and `value` are `[width]`.
    ///
    /// # Panics
    /// If the position was not [reserved](KvCache::reserve), or a vector has the wrong width.
    pub fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let width = self.width;
        assert!(key.len() == width && value.len() == width, "width of keys and values");
        let (block, at) = (position / KV_BLOCK, position % KV_BLOCK);
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                blocks[block].keys[at * width..][..width].copy_from_slice(key);
                blocks[block].values[at * width..][..width].copy_from_slice(value);
            }
            Blocks::Int8(blocks) => blocks[block].write(at, key, value),
        }
    }

    /// Appends the first `positions` positions to `out`, as the bytes of whole blocks.
    pub fn save(&self, positions: usize, out: &mut Vec<u8>) {
        let count = positions.div_ceil(KV_BLOCK);
        match &self.blocks {
            Blocks::Exact(blocks) => {
                for block in &blocks[..count] {
                    out.extend(bytemuck::cast_slice(&block.keys));
                    out.extend(bytemuck::cast_slice(&block.values));
                }
            }
            Blocks::Int8(blocks) => {
                for block in &blocks[..count] {
                    block.parts().into_iter().for_each(|part| out.extend_from_slice(part));
                }
            }
        }
    }

    /// Number of bytes that [`KvCache::save`] appends for `positions`.
    pub fn saved_bytes(&self, positions: usize) -> usize {
        positions.div_ceil(KV_BLOCK) * self.block_bytes()
    }

    /// Restores `positions` positions from the bytes of [`KvCache::save`] and clears all others.
    ///
    /// # Panics
    /// If `saved` is not [`KvCache::saved_bytes`] long.
    pub fn load(&mut self, positions: usize, saved: &[u8], arena: &mut HugePageArena) {
        assert_eq!(saved.len(), self.saved_bytes(positions), "bytes of a saved cache");
        self.reserve(positions, arena);
        self.clear_from(positions.div_ceil(KV_BLOCK));
        let bytes = self.block_bytes();
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                for (block, saved) in blocks.iter_mut().zip(saved.chunks_exact(bytes)) {
                    let (keys, values) = saved.split_at(bytes / 2);
                    bytemuck::cast_slice_mut(&mut block.keys).copy_from_slice(keys);
                    bytemuck::cast_slice_mut(&mut block.values).copy_from_slice(values);
                }
            }
            Blocks::Int8(blocks) => {
                for (block, saved) in blocks.iter_mut().zip(saved.chunks_exact(bytes)) {
                    let mut saved = saved;
                    for part in block.parts_mut() {
                        part.copy_from_slice(saved.split_off(..part.len()).expect("bytes of a whole block"));
                    }
                }
            }
        }
    }
}

/// Scale of INT8 codes for `x`, and its inverse.
fn code_scale(x: &[f32]) -> (f32, f32) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest > 1e-35 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) }
}
