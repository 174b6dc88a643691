"""From the files of a data set to training batches; what each module stands on comes before it.

What is annotated   entries, areas, indexing -> annotations (flat arrays), json_stream, annotation_cache
Where it lies       layout, images -> dataset, with a module per format: coco, voc; shapes draws its own
What takes part     split, samplers
Augmentation        outline, sample, geometry, pixels, mixing, patch -> augment
Batches             batches -> datamodule
"""
