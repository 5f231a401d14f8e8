// The gated delta rule for T tokens: everything between the convolution and the gated norm. One SIMD group per value
// column of a head; its lanes split the key axis, so that each row of the state is read and written once, by whole cache
// lines, and stays in registers for all tokens. The source compiles as Metal, and as CUDA with the prelude in kernel.rs.
//
// Template: KEY_HEADS, HEADS (value heads), K, V. Grid (32, V, HEADS). K is a multiple of 32.
//   mixed [T, 2 K KEY_HEADS + V HEADS]  queries, keys, values before SiLU
//   a, b [T, HEADS]     a_log, dt_bias [HEADS]     state, state_out [HEADS, V, K]     out [T, HEADS, V]
const int lane = int(thread_position_in_threadgroup.x);
const int column = int(thread_position_in_grid.y);
const int head = int(thread_position_in_grid.z);
const int key_head = head / (HEADS / KEY_HEADS);
const int tokens = int(mixed_shape[0]);
constexpr int WIDTH = 2 * K * KEY_HEADS + V * HEADS;
constexpr int PER_LANE = K / 32;
const int first = lane * PER_LANE;

const float rate = metal::precise::exp(a_log[head]);
const float bias = dt_bias[head];
const int row = (head * V + column) * K + first;
float updated[PER_LANE];
for (int i = 0; i < PER_LANE; ++i) {
  updated[i] = state[row + i];
}

for (int t = 0; t < tokens; ++t) {
  const int base = t * WIDTH;
  float query[PER_LANE];
  float key[PER_LANE];
  float query_square = 0.0f;
  float key_square = 0.0f;
  for (int i = 0; i < PER_LANE; ++i) {
    const float q = float(mixed[base + key_head * K + first + i]);
    const float k = float(mixed[base + (KEY_HEADS + key_head) * K + first + i]);
    query[i] = q / (1.0f + metal::precise::exp(-q));
    key[i] = k / (1.0f + metal::precise::exp(-k));
    query_square += query[i] * query[i];
    key_square += key[i] * key[i];
  }
  const float query_scale = metal::precise::rsqrt(simd_sum(query_square) + 1e-6f) * metal::precise::rsqrt(float(K));
  const float key_scale = metal::precise::rsqrt(simd_sum(key_square) + 1e-6f);

  const float step = float(a[t * HEADS + head]) + bias;
  const float softplus = metal::max(step, 0.0f) + metal::precise::log(1.0f + metal::precise::exp(-metal::fabs(step)));
  const float decay = metal::precise::exp(-rate * softplus);
  const float beta = 1.0f / (1.0f + metal::precise::exp(-float(b[t * HEADS + head])));
  const float raw_value = float(mixed[base + 2 * KEY_HEADS * K + head * V + column]);
  const float value = raw_value / (1.0f + metal::precise::exp(-raw_value));

  float predicted = 0.0f;
  for (int i = 0; i < PER_LANE; ++i) {
    updated[i] *= decay;
    key[i] *= key_scale;
    predicted += updated[i] * key[i];
  }
  const float delta = (value - simd_sum(predicted)) * beta;
  float read = 0.0f;
  for (int i = 0; i < PER_LANE; ++i) {
    updated[i] += key[i] * delta;
    read += updated[i] * query[i];
  }
  read = simd_sum(read) * query_scale;
  if (lane == 0) {
    out[(t * HEADS + head) * V + column] = read;
  }
}

for (int i = 0; i < PER_LANE; ++i) {
  state_out[row + i] = updated[i];
}
