#include "kernel_table.h"
#include "lanes_avx512vnni.h"

#define KERNELS kernels_avx512vnni
#define ISA "avx512vnni"
#include "kernel_table.inc.h"
