#include "kernel_table.h"
#include "lanes_scalar.h"

#define KERNELS kernels_scalar
#define ISA "scalar"
#include "kernel_table.inc.h"
