"""The order in which a captured graph becomes a training graph; each pass is a file beside this.

simplify, use_causal_attention   in `captured`: once per model
expose_hidden                    before the head can be mistaken for a target
insert_adapters                  while every target is still one plain linear
train_classifier, train_base     what is trained besides the method's own tensors
quantize_base                    after the adapters, which never see how the base is stored
checkpoint_blocks                last: it splits what the others have written
"""
