"""Archives that are an index: a JSON file that says where, in other files, the chunks lie.

`das_gpu.virtual.document` is the index file's content, `das_gpu.virtual.joined` makes chunks of
bytes that lie in several places, `das_gpu.virtual.transport` answers for all of it as a store
does. `das_gpu.index` writes such files.
"""
