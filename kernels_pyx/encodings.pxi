# Blocks of numbers as in GGUF files, and rows of activations as on the wire. Included by _kernels.pyx.
cdef extern from "c/wire.h" nogil:
    enum: ENCODING_Q8_0_OUTLIERS
    enum: MAX_OUTLIER_WIDTH
    size_t c_encoded_row_bytes "encoded_row_bytes"(int encoding, int width)
    int encoded_row_is_valid(int encoding, const uint8_t* row, int width)

WIRE_ENCODINGS = ("F32", "F16", "Q8_0", "Q8_0_OUTLIERS")


cdef object whole_blocks(object x):
    array = f32_array(x, 1, "x")
    if array.size % 32:
        raise ValueError(f"x has {array.size} numbers, expected a multiple of 32, the size of a block")
    return array


QUANTIZED_FORMATS = ("Q8_0", "Q4_0", "Q4_K")

cdef enum:
    LARGEST_F16 = 65504


cdef bytes quantized_blocks(str block_format, object array):
    """array: f32, contiguous, of whole blocks."""
    _, block_size, block_bytes = BLOCK_FORMATS[block_format]
    result = bytearray(array.size // block_size * block_bytes)
    cdef const float[::1] source = array.reshape(-1)
    cdef uint8_t[::1] out = result
    cdef size_t num_blocks = array.size // block_size
    cdef int index = QUANTIZED_FORMATS.index(block_format)
    if num_blocks:
        with nogil:
            if index == 0:
                active_kernels().quantize_q8_0(&source[0], num_blocks, &out[0])
            elif index == 1:
                c_quantize_q4_0(&source[0], num_blocks, &out[0])
            else:
                c_quantize_q4_k(&source[0], num_blocks, &out[0])
    return bytes(result)


def quantize_q8_0(x) -> bytes:
    return quantized_blocks("Q8_0", whole_blocks(x))


def quantize_q4_0(x) -> bytes:
    array = whole_blocks(x)
    if not np.isfinite(array).all():
        raise ValueError("x holds an infinity or a NaN, expected finite numbers")
    return quantized_blocks("Q4_0", array)


def quantize_rows(block_format: str, x) -> bytes:
    if block_format not in QUANTIZED_FORMATS:
        raise ValueError(f"numbers cannot be quantised to {block_format!r}, expected one of {', '.join(QUANTIZED_FORMATS)}")
    array = f32_array(x, 2, "x")
    block_size = BLOCK_FORMATS[block_format].block_size
    if array.shape[1] % block_size:
        raise ValueError(f"x has rows of {array.shape[1]} numbers, expected a multiple of {block_size}, the block of {block_format}")
    if not (np.abs(array) <= LARGEST_F16).all():
        raise ValueError(f"x holds numbers beyond {LARGEST_F16} or a NaN, expected those that the scales of {block_format} can stand for")
    return quantized_blocks(block_format, array)


def dequantize(block_format: str, data, count: int):
    cdef int index = format_index(block_format)
    cdef const uint8_t[::1] source = byte_view(data, "data")
    _, block_size, block_bytes = BLOCK_FORMATS[block_format]
    if count < 0 or count % block_size:
        raise ValueError(f"count is {count}, expected a multiple of {block_size}, the block of {block_format}")
    if source.shape[0] != count // block_size * block_bytes:
        raise ValueError(
            f"data has {source.shape[0]} bytes, expected {count // block_size * block_bytes} for {count} numbers in {block_format}"
        )
    result = np.empty(count, np.float32)
    cdef float[::1] out = result
    cdef size_t num_blocks = count // block_size
    if num_blocks:
        with nogil:
            c_dequantize_blocks(index, &source[0], num_blocks, &out[0])
    return result


cdef int encoding_index(str encoding, Py_ssize_t width) except -1:
    """The encoding's number, after a check of the width that it is for."""
    if encoding not in WIRE_ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}, expected one of {', '.join(WIRE_ENCODINGS)}")
    cdef int index = WIRE_ENCODINGS.index(encoding)
    cdef Py_ssize_t most = MAX_OUTLIER_WIDTH if index == ENCODING_Q8_0_OUTLIERS else LARGEST_DIMENSION
    if not 1 <= width <= most:
        raise ValueError(f"width is {width}, expected 1 to {most} for {encoding}")
    return index


cdef class RowEncoding:
    """Of rows of `width` numbers, the last `carried` of which are in F16, or in F32 where all are."""

    cdef int index, width, carried_index, carried
    cdef size_t own_bytes, row_bytes

    def __init__(self, str encoding, Py_ssize_t width, Py_ssize_t carried):
        if not 0 <= carried <= max(width - 1, 0):
            raise ValueError(f"carried is {carried}, expected 0 to {max(width - 1, 0)}, less than the width")
        self.index = encoding_index(encoding, width - carried)
        self.width, self.carried = <int>(width - carried), <int>carried
        self.carried_index = WIRE_ENCODINGS.index("F32" if encoding == "F32" else "F16")
        self.own_bytes = c_encoded_row_bytes(self.index, self.width)
        self.row_bytes = self.own_bytes + c_encoded_row_bytes(self.carried_index, self.carried)


def encoded_row_bytes(encoding: str, width: int, carried: int = 0) -> int:
    return RowEncoding(encoding, width, carried).row_bytes


def encode_rows(x, encoding: str, carried: int = 0) -> bytes:
    cdef const float[:, ::1] rows = f32_array(x, 2, "x")
    cdef RowEncoding how = RowEncoding(encoding, rows.shape[1], carried)
    result = bytearray(rows.shape[0] * how.row_bytes)
    cdef uint8_t[::1] out = result
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.shape[0]):
            active_kernels().encode_row(how.index, &rows[i, 0], how.width, &out[i * how.row_bytes])
            if how.carried:
                active_kernels().encode_row(how.carried_index, &rows[i, how.width], how.carried, &out[i * how.row_bytes + how.own_bytes])
    return bytes(result)


def decode_rows(data, rows: int, width: int, encoding: str, carried: int = 0):
    cdef RowEncoding how = RowEncoding(encoding, width, carried)
    cdef const uint8_t[::1] source = byte_view(data, "data")
    if rows < 0 or source.shape[0] != rows * how.row_bytes:
        raise ValueError(f"data has {source.shape[0]} bytes, expected {rows} rows of {how.row_bytes}, width {width} in {encoding}")
    result = np.empty((rows, width), np.float32)
    cdef float[:, ::1] out = result
    cdef Py_ssize_t i
    for i in range(source.shape[0] // <Py_ssize_t>how.row_bytes):
        if not encoded_row_is_valid(how.index, &source[i * how.row_bytes], how.width):
            raise ValueError(f"row {i} of {rows} has outlier indices that are not ascending within its width of {how.width}")
    with nogil:
        for i in range(out.shape[0]):
            active_kernels().decode_row(how.index, &source[i * how.row_bytes], how.width, &out[i, 0])
            if how.carried:
                active_kernels().decode_row(
                    how.carried_index, &source[i * how.row_bytes + how.own_bytes], how.carried, &out[i, how.width]
                )
    return result


def round_rows(x, encoding: str, carried: int = 0):
    result = f32_array(x, 2, "x").copy()
    cdef float[:, ::1] rows = result
    cdef RowEncoding how = RowEncoding(encoding, rows.shape[1], carried)
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.shape[0]):
            active_kernels().round_row(how.index, &rows[i, 0], how.width)
            if how.carried:
                active_kernels().round_row(how.carried_index, &rows[i, how.width], how.carried)
    return result
