"""Growth within a run: when, with what schedule, and the growth itself (model/growth has the operators).

A deep model learns its first tokens about as well while it is shallow, at a fraction of the FLOPs. So a run may have
stages: a small model trains, its layers are copied into a larger one (G_stack: abc becomes abcabc), and that one goes
on with text that nobody has seen yet. With D tokens in all and a growth by g after d of them, the run costs about d / g
+ (D - d) of the D that the large model alone would.

The idea that keeps this small: a growth is a checkpoint. The small model's last one is streamed, tensor by tensor, into
the large one's first, and the run then goes on as every resume does. A kill at any moment leaves one of the two, so
there is no half-grown state, and engine, optimizer and data need not know that anything happened.

What is subtle: `step` counts on over the stages while the optimizer's `updates` may begin anew; tokens and FLOPs are
those of all stages; silent layers must not be dead (model/growth/operators.py). Start with `grow.py`; what grows when
is in `pretrain.config.stages`.
"""
