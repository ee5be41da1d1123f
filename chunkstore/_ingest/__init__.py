"""From `.npy` and `.npz` files to a container: headers, scan, plan, readers, convert.

npy        bytes of a source file -> what is in it, and where -> its elements, little-endian and in C order
plan       directories -> files in natural order -> every sample, its fields, and where each row is now
convert    a plan -> a container, by any number of workers
export     a container -> the files that it was made of
"""
