#include "kernel_table.h"
#include "dots_neon.h"

#define KERNELS kernels_neondot
#define ISA "neondot"
#include "kernel_table.inc.h"
