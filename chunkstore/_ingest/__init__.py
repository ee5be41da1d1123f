"""From `.npy` and `.npz` files to a container: headers, scan, plan, readers, convert.

npyheader, npz bytes of a source file -> what is in it, and where arrays one array -> its elements, little-endian and
in C order, in bounded memory scan directories -> files in natural order fields, layouts files -> samples and their
fields plan, read every sample, its source, its destination; and the bytes that belong there
"""
