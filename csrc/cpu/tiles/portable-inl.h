// Products on any CPU with the arithmetic of AMX: in steps of 32 products for each result, even and odd ones summed
// apart from zero on, then together, then with what there was. Where AMX would flush a subnormal number, this does not.

namespace {

struct Tiles {
  void multiply(const TileProduct& p) {
    for (int m = 0; m < p.blocks * kTileRows; ++m)
      for (int n = 0; n < p.columns; ++n) row(p, m, n);
  }

 private:
  static constexpr int kLanes = 4, kParts = kTileColumns / kLanes;
  typedef float V __attribute__((vector_size(4 * kLanes)));
  typedef uint32_t U __attribute__((vector_size(4 * kLanes)));

  static void row(const TileProduct& p, int m, int n) {
    const Bfloat16* a = p.a + p.block[m / kTileRows] + m % kTileRows * p.a_row;
    const Bfloat16* b = p.b + n * p.b_columns;
    float* c = p.c + m * p.c_row + n * kTileColumns;
    V sum[kParts] = {};
    if (p.add) __builtin_memcpy(sum, c, sizeof sum);
    for (int t = 0; t < p.taps; ++t)
      for (int k = 0; k < p.depth; k += kTileDepth) {
        V even[kParts] = {}, odd[kParts] = {};
        const int end = p.depth - k < kTileDepth ? p.depth : k + kTileDepth;
        for (int i = k; i < end; i += 2) {
          const float x = value(a[t * p.a_tap + i]), y = value(a[t * p.a_tap + i + 1]);
          for (int v = 0; v < kParts; ++v) {
            U pairs;
            __builtin_memcpy(&pairs, b + t * p.b_tap + i / 2 * p.b_pair + v * 2 * kLanes, sizeof pairs);
            even[v] += x * (V)(pairs << 16);
            odd[v] += y * (V)(pairs & 0xffff0000u);
          }
        }
        for (int v = 0; v < kParts; ++v) sum[v] += even[v] + odd[v];
      }
    __builtin_memcpy(c, sum, sizeof sum);
  }

  static float value(Bfloat16 bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float result;
    __builtin_memcpy(&result, &wide, sizeof result);
    return result;
  }
};

}  // namespace
