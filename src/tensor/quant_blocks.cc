#include "tensor/quant_blocks.h"
