"""Fine-tuning a model and its codebook to each other (arXiv 2505.19342, section 3.3).

Above quant and families, tensors only: data come in as batches, what is kept goes out as files.
"""
