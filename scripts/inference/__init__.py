"""From a trained network to label maps: inferers, exported networks, predictor, work sharing, DICOM."""
