//! The key/value cache of one full-attention layer.

use mlx_rs::error::Result;
use mlx_rs::ops::{self, indexing::TryIndexMutOp, indexing::TryIndexOp};
use mlx_rs::{Array, Dtype};

/// Granularity of a cache's capacity in tokens: the cache is reallocated and copied once per that many.
const GROWTH: i32 = 256;

/// Keys and values of the tokens so far, [1, kv heads, capacity, head_dim]; the first `length` rows are in use.
#[derive(Clone)]
pub(crate) struct KeyValueCache {
    pub keys: Array,
    pub values: Array,
    pub length: i32,
}

impl KeyValueCache {
    pub fn new(heads: i32, head_dim: i32, dtype: Dtype) -> Result<Self> {
        let empty = || ops::zeros_dtype(&[1, heads, 0, head_dim], dtype);
        Ok(Self { keys: empty()?, values: empty()?, length: 0 })
    }

    /// Appends keys and values [1, kv heads, T, head_dim] and returns those of all tokens so far.
    pub fn append(&mut self, keys: &Array, values: &Array) -> Result<(Array, Array)> {
        let after = self.length + keys.dim(2);
        for (cache, fresh) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let missing = after - cache.dim(2);
            if missing > 0 {
                let mut shape = cache.shape().to_vec();
                shape[2] = (missing + GROWTH - 1) / GROWTH * GROWTH;
                *cache = ops::concatenate(&[cache.clone(), ops::zeros_dtype(&shape, cache.dtype())?], 2)?;
            }
            cache.try_index_mut((.., .., self.length..after), fresh)?;
        }
        self.length = after;
        self.used()
    }

    /// Keys and values of the tokens so far, [1, kv heads, length, head_dim].
    pub fn used(&self) -> Result<(Array, Array)> {
        let rows = |cache: &Array| cache.try_index((.., .., 0..self.length));
        Ok((rows(&self.keys)?, rows(&self.values)?))
    }
}
