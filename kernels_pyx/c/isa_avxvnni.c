#include "kernel_table.h"
#include "dots_avxvnni.h"

#define KERNELS kernels_avxvnni
#define ISA "avxvnni"
#include "kernel_table.inc.h"
