#include "kernel_table.h"
#include "dots_neon.h"

#define KERNELS kernels_neoni8mm
#define ISA "neoni8mm"
#include "kernel_table.inc.h"
