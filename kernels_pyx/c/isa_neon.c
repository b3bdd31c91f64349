#include "kernel_table.h"
#include "dots_neon.h"

#define KERNELS kernels_neon
#define ISA "neon"
#include "kernel_table.inc.h"
