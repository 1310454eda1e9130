// What the Python module takes from the library of the ops; everything else stays hidden in it.
#pragma once

#define CONTNET_FAST_API __attribute__((visibility("default")))
