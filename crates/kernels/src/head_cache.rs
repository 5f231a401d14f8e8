//! Keys and values of one key/value head, for [`crate::attend`].
//!
//! The exact cache keeps f32. The fast one keeps keys and values in eight bits with one scale for each position, laid
//! out as its products take them.

use crate::input::Mode;
use crate::pages::{Pages, Part};

/// Positions in one block of a cache, which attention takes at a time: so many that its keys, and then its values, are
/// read from beginning to end of whole pages of memory.
pub const SPAN: usize = 256;

/// Keys and values of one head, in blocks that are added as the sequence grows.
#[derive(Debug)]
pub struct HeadCache {
    pub(crate) width: usize,
    pub(crate) blocks: Blocks,
}

#[derive(Debug)]
pub(crate) enum Blocks {
    Exact(Vec<ExactBlock>),
    Fast(Vec<FastBlock>),
}

#[derive(Debug)]
pub(crate) struct ExactBlock {
    /// [SPAN, width]
    pub keys: Part<f32>,
    /// [SPAN, width]
    pub values: Part<f32>,
}

#[derive(Debug)]
pub(crate) struct FastBlock {
    /// [SPAN / 16][width rounded up to 4, in fours][16][4]: four columns of sixteen positions in a vector, 128 added.
    pub keys: Part<u8>,
    /// Bits 4 to 8 of codes to which 128 was added, [width rounded up to 32, in 32s][SPAN / 4][16][4]: four positions of
    /// sixteen columns in the low nibbles of a vector, and of the sixteen columns after them in the high ones.
    pub upper_values: Part<u8>,
    /// Bits 0 to 4, as the others.
    pub lower_values: Part<u8>,
    pub key_scales: [f32; SPAN],
    pub value_scales: [f32; SPAN],
}

/// Bits 4 to 8 of two codes of zero, 128 added; bits 0 to 4 are zeros.
const ZERO_NIBBLES: u8 = 0x88;

impl FastBlock {
    fn new(width: usize, pages: &mut Pages) -> Self {
        let nibbles = SPAN * width.next_multiple_of(32) / 2;
        let mut block = Self {
            keys: pages.take(SPAN * width.next_multiple_of(4)),
            upper_values: pages.take(nibbles),
            lower_values: pages.take(nibbles),
            key_scales: [0.0; SPAN],
            value_scales: [0.0; SPAN],
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
        let (scale, inverse) = scales_of(key);
        self.key_scales[at] = scale;
        for (column, x) in key.iter().enumerate() {
            let place = (at / 16 * key.len().div_ceil(4) + column / 4) * 64 + at % 16 * 4 + column % 4;
            self.keys[place] = code(x * inverse);
        }
        let (scale, inverse) = scales_of(value);
        self.value_scales[at] = scale;
        for (column, x) in value.iter().enumerate() {
            let place = column / 32 * 16 * SPAN + at / 4 * 64 + column % 16 * 4 + at % 4;
            let (code, shift) = (code(x * inverse), column % 32 / 16 * 4);
            for (byte, nibble) in
                [(&mut self.upper_values[place], code >> 4), (&mut self.lower_values[place], code & 15)]
            {
                *byte = *byte & !(15 << shift) | nibble << shift;
            }
        }
    }

    /// What is saved, in order.
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

impl HeadCache {
    /// An empty cache for heads of `width`.
    pub fn new(mode: Mode, width: usize) -> Self {
        let blocks = match mode {
            Mode::Exact => Blocks::Exact(Vec::new()),
            Mode::Fast => Blocks::Fast(Vec::new()),
        };
        Self { width, blocks }
    }

    /// Bytes of one block.
    fn block_bytes(&self) -> usize {
        match self.blocks {
            Blocks::Exact(_) => 8 * SPAN * self.width,
            Blocks::Fast(_) => SPAN * (self.width.next_multiple_of(4) + self.width.next_multiple_of(32) + 8),
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        let count = match &self.blocks {
            Blocks::Exact(blocks) => blocks.len(),
            Blocks::Fast(blocks) => blocks.len(),
        };
        count * self.block_bytes()
    }

    /// Makes room for positions below `positions`.
    pub fn reserve(&mut self, positions: usize, pages: &mut Pages) {
        let (count, width) = (positions.div_ceil(SPAN), self.width);
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                while blocks.len() < count {
                    let mut zeros = || pages.take(SPAN * width);
                    blocks.push(ExactBlock { keys: zeros(), values: zeros() });
                }
            }
            Blocks::Fast(blocks) => {
                while blocks.len() < count {
                    blocks.push(FastBlock::new(width, pages));
                }
            }
        }
    }

    /// Forgets all positions; memory is kept.
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
            Blocks::Fast(blocks) => blocks.iter_mut().skip(block).for_each(FastBlock::clear),
        }
    }

    /// Writes one position, for which there is room.
    ///
    /// # Panics
    /// If there is no room, or a vector has another width.
    pub fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let width = self.width;
        assert!(key.len() == width && value.len() == width, "width of keys and values");
        let (block, at) = (position / SPAN, position % SPAN);
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                blocks[block].keys[at * width..][..width].copy_from_slice(key);
                blocks[block].values[at * width..][..width].copy_from_slice(value);
            }
            Blocks::Fast(blocks) => blocks[block].write(at, key, value),
        }
    }

    /// Appends the first `positions` positions, as whole blocks of bytes, to `out`.
    pub fn save(&self, positions: usize, out: &mut Vec<u8>) {
        let count = positions.div_ceil(SPAN);
        match &self.blocks {
            Blocks::Exact(blocks) => {
                for block in &blocks[..count] {
                    out.extend(bytemuck::cast_slice(&block.keys));
                    out.extend(bytemuck::cast_slice(&block.values));
                }
            }
            Blocks::Fast(blocks) => {
                for block in &blocks[..count] {
                    block.parts().into_iter().for_each(|part| out.extend_from_slice(part));
                }
            }
        }
    }

    /// Bytes that [`HeadCache::save`] appends for as many positions.
    pub fn saved_bytes(&self, positions: usize) -> usize {
        positions.div_ceil(SPAN) * self.block_bytes()
    }

    /// Takes back what [`HeadCache::save`] wrote for `positions` positions, and forgets all others.
    ///
    /// # Panics
    /// If there are not [`HeadCache::saved_bytes`] bytes.
    pub fn load(&mut self, positions: usize, saved: &[u8], pages: &mut Pages) {
        assert_eq!(saved.len(), self.saved_bytes(positions), "bytes of a saved cache");
        self.reserve(positions, pages);
        self.clear_from(positions.div_ceil(SPAN));
        let bytes = self.block_bytes();
        match &mut self.blocks {
            Blocks::Exact(blocks) => {
                for (block, saved) in blocks.iter_mut().zip(saved.chunks_exact(bytes)) {
                    let (keys, values) = saved.split_at(bytes / 2);
                    bytemuck::cast_slice_mut(&mut block.keys).copy_from_slice(keys);
                    bytemuck::cast_slice_mut(&mut block.values).copy_from_slice(values);
                }
            }
            Blocks::Fast(blocks) => {
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

/// The scale of eight-bit codes for `x`, and its inverse.
fn scales_of(x: &[f32]) -> (f32, f32) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest > 1e-35 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) }
}
