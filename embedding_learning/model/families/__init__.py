"""The families of backbones: one module builds the classifiers of one family.

To add a family, write a module here with the function

    build(name: str) -> HybridBlock

which returns an uninitialized classifier. Its attribute `features` holds the layers before the last
one, from (n, 3, height, width) to features; its last layer is the attribute `output`. For another
structure, add `take_features(classifier, name) -> HybridBlock`, which may change the classifier.

Then add a row for each network to ARCHITECTURES in `model.weights.catalog`, with the module's name
as `family`. tests/model/test_backbones.py compares the row with the network.
"""
