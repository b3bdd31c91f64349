/* Dot products where an instruction set adds products of bytes to 32 bits, so that it does not matter how many bits weights have. Included
   once add_products (of four bytes, to each lane) and add_scaled (acc + dots * scales) are there. lanes_scalar.h says what each does. */
#ifndef DAIRLLM_DOTS_ALIKE_H
#define DAIRLLM_DOTS_ALIKE_H

#define ANY_BITS_ALIKE
typedef i32x16 dot32;

LANES dot32 dot_begin(int bits, int32_t start) {
    (void)bits;
    return i32x16_set1(start);
}
LANES dot32 dot_add(int bits, int step, dot32 acc, u8x64 w, int32_t a4) {
    (void)bits;
    (void)step;
    return add_products(acc, w, a4);
}
LANES i32x16 dot_total(int bits, dot32 acc, int32_t start) {
    (void)bits;
    (void)start;
    return acc;
}

enum { VECTORS_AT_ONCE = 4 };
LANES i32x16 add_scaled_dots(i32x16 acc, const u8x64 w[4], const int32_t a[4], i32x16 scales) {
    i32x16 products = i32x16_zero();
    UNROLL_ROWS
    for (int v = 0; v < 4; v++) {
        products = add_products(products, w[v], a[v]);
    }
    return add_scaled(acc, products, scales);
}

#endif
