#include "wire.h"

size_t encoded_row_bytes(int encoding, int width) {
    const size_t blocks = ((size_t)width + QUANT_BLOCK - 1) / QUANT_BLOCK * 34;
    switch (encoding) {
        case ENCODING_F32: return (size_t)width * 4;
        case ENCODING_F16: return (size_t)width * 2;
        case ENCODING_Q8_0: return blocks;
        default: return OUTLIER_BYTES + blocks;
    }
}

int encoded_row_is_valid(int encoding, const uint8_t* row, int width) {
    if (encoding != ENCODING_Q8_0_OUTLIERS) {
        return 1;
    }
    const int used = width < NUM_OUTLIERS ? width : NUM_OUTLIERS;
    int previous = -1;
    for (int i = 0; i < NUM_OUTLIERS; i++) {
        const int index = load_u16(row + 4 * i);
        if (i < used ? index <= previous || index >= width : index != UNUSED_OUTLIER) {
            return 0;
        }
        previous = index;
    }
    return 1;
}
