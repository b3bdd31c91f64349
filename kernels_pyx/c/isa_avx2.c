#include "kernel_table.h"
#include "dots_avx2.h"

#define KERNELS kernels_avx2
#define ISA "avx2"
#include "kernel_table.inc.h"
